//! The network tools of upstream's image, over the pod's sockets.
pub mod connect;
pub mod curl;
pub mod nc;
pub mod resolver;
