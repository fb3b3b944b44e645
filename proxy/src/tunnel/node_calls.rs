//! Calls between nodes themselves, not their pods: plain HTTP/2 requests to the authority `node`.

use std::sync::Arc;

use async_trait::async_trait;
use http::{Request, Response};
use machinery_serve::net::Body;

use super::remote::RemotePod;
use super::signed::{NodeSignature, SignatureError};
use super::{Tunnel, head};

/// Answers calls of other nodes to this one.
#[async_trait]
pub trait NodeService: Send + Sync + 'static {
    /// Answers the call of an authenticated node. Its body is empty.
    async fn call(&self, node: &str, request: Request<()>) -> Response<Body>;
}

impl Tunnel {
    /// Sets what answers calls of other nodes to this one. The first one stays; without one all such calls are refused.
    pub fn set_node_service(&self, service: Arc<dyn NodeService>) {
        let _ = self.node_service.set(service);
    }

    /// The nodes that exchange compiled modules with the same version and CPU features: this annotation of a Node.
    #[must_use]
    pub fn nodes_with_compiled(&self, key: &str) -> Vec<Arc<str>> {
        let peers = self.peers.load();
        let same =
            peers.table.nodes().iter().filter(|node| node.compiled.as_deref() == Some(key) && node.name != self.node);
        same.map(|node| node.name.clone()).collect()
    }

    /// Calls another node; `None` if it is unknown or unreachable, or has no answer.
    pub async fn call_node(&self, node: &str, request: Request<()>) -> Option<Response<Body>> {
        let remote = self.remote_node(node)?;
        let (parts, ()) = request.into_parts();
        let head = head::encode_node(&parts).ok()?;
        remote.call_node(&head).await
    }

    /// Signs a message as this node; `None` if the key of its certificate can't.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Option<NodeSignature> {
        self.tls.sign(message)
    }

    /// Verifies that a node has signed a message.
    ///
    /// # Errors
    /// If the certificate isn't the node's or not valid now, or the signature is wrong.
    pub fn verify(&self, node: &str, message: &[u8], signed: &NodeSignature) -> Result<(), SignatureError> {
        self.tls.verify(node, message, signed)
    }

    fn remote_node(&self, node: &str) -> Option<Arc<RemotePod>> {
        let peers = self.peers.load();
        peers.remotes.iter().flatten().find(|remote| &*remote.peer.name == node).cloned()
    }
}
