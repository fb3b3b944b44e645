//! Tests of the tunnel over loopback sockets.
