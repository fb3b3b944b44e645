//! Asks other nodes for a compiled module.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use machinery_serve::net::Body;
use oci_registry::blobs;
use tokio::io::AsyncWriteExt as _;
use wasm_runtime::engine::{COMPILED_BYTES_MAX, CompiledName, CompiledSource, FetchedModule};

use crate::Exchange;
use crate::message::{Offer, path, signed_bytes};

/// Maximum nodes that are queried for one module.
const NODES_MAX: usize = 16;
/// Nodes that are asked at once.
const CONCURRENT_REQUESTS: usize = 4;
/// Time of one node for the head of its answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Time for everything: most modules are compiled within it, too.
const FETCH_MAX: Duration = Duration::from_secs(30);

/// The nodes to query, in an order that depends on the module, which spreads the queries over all nodes.
fn order(mut nodes: Vec<Arc<str>>, name: &CompiledName) -> Vec<Arc<str>> {
    nodes.sort_by_cached_key(|node| blobs::digest(format!("{} {node}", name.digest()).as_bytes()));
    nodes.truncate(NODES_MAX);
    nodes
}

#[async_trait]
impl CompiledSource for Exchange {
    async fn fetch(&self, name: &CompiledName, into: &Path) -> Option<FetchedModule> {
        let nodes = order(self.tunnel.nodes_with_compiled(&self.key), name);
        if nodes.is_empty() {
            return None;
        }
        let ask = |node: Arc<str>| async move { Some((self.ask(&node, name).await?, node)) };
        let mut answers = stream::iter(nodes).map(ask).buffer_unordered(CONCURRENT_REQUESTS);
        let fetch = async {
            while let Some(answer) = answers.next().await {
                let Some((response, node)) = answer else { continue };
                match self.receive(&node, name, response, into).await {
                    Ok(fetched) => return Some((fetched, node)),
                    Err(error) => {
                        self.metrics.count("rejected");
                        tracing::warn!(%node, digest = name.digest(), error, "a compiled module of another node is not used");
                    }
                }
            }
            None
        };
        let fetched = self.env.timeout(FETCH_MAX, fetch).await.ok().flatten();
        self.metrics.count(if fetched.is_some() { "fetched" } else { "missing" });
        let (fetched, node) = fetched?;
        tracing::info!(%node, digest = name.digest(), "a compiled module was fetched from another node");
        Some(fetched)
    }
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

impl Exchange {
    /// A node's answer, if it has the module.
    async fn ask(&self, node: &str, name: &CompiledName) -> Option<Response<Body>> {
        let request = Request::get(path(name)).body(()).ok()?;
        let answer = self.env.timeout(ANSWER_MAX, self.tunnel.call_node(node, request)).await.ok()??;
        (answer.status() == StatusCode::OK).then_some(answer)
    }

    /// Verifies an answer's signature before its artifact is written. The caller compares that with the signed checksum.
    async fn receive(
        &self,
        node: &str,
        name: &CompiledName,
        response: Response<Body>,
        into: &Path,
    ) -> Result<FetchedModule, Failed> {
        let (head, mut body) = response.into_parts();
        let Offer { sum, signature, description_bytes } =
            Offer::read(&head.headers).ok_or("the answer is malformed")?;
        let (description, first) = read_description(&mut body, description_bytes.unwrap_or(0)).await?;
        let description = description_bytes.map(|_| description);
        self.tunnel.verify(node, &signed_bytes(&self.key, name, &sum, description.as_deref()), &signature)?;
        let mut file = tokio::fs::File::create(into).await?;
        let (mut bytes, mut next) = (0, Some(first));
        while let Some(data) = next {
            bytes += data.len() as u64;
            if bytes > COMPILED_BYTES_MAX {
                return Err("it is too large".into());
            }
            file.write_all(&data).await?;
            next = next_data(&mut body).await?;
        }
        file.flush().await?;
        Ok(FetchedModule { sum, description })
    }
}

/// The next bytes of a body; `None` at its end.
async fn next_data(body: &mut Body) -> Result<Option<Bytes>, Failed> {
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// The description of so many bytes, and the bytes of the artifact that came with its end.
async fn read_description(body: &mut Body, bytes: usize) -> Result<(Vec<u8>, Bytes), Failed> {
    let (mut description, mut rest) = (Vec::new(), Bytes::new());
    while description.len() < bytes {
        let mut data = next_data(body).await?.ok_or("it is cut short")?;
        description.extend_from_slice(&data.split_to(data.len().min(bytes - description.len())));
        rest = data;
    }
    Ok((description, rest))
}

#[cfg(test)]
mod tests {
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    fn body(pieces: &[&'static str]) -> Body {
        let frames: Vec<_> = pieces.iter().map(|piece| Ok(Frame::data(Bytes::from(*piece)))).collect();
        StreamBody::new(stream::iter(frames)).boxed_unsync()
    }

    #[tokio::test]
    async fn a_description_ends_anywhere() {
        for pieces in [&["abc", "defg"][..], &["abcdefg"], &["a", "b", "c", "d", "e", "f", "g"], &["abcdef", "g"]] {
            let mut body = body(pieces);
            let (description, rest) = read_description(&mut body, 5).await.unwrap();
            let more = body.collect().await.unwrap().to_bytes();
            assert_eq!(
                (&description[..], &[&rest[..], &more[..]].concat()[..]),
                (&b"abcde"[..], &b"fg"[..]),
                "{pieces:?}"
            );
        }
        let (description, rest) = read_description(&mut body(&["abc"]), 0).await.unwrap();
        assert!(description.is_empty() && rest.is_empty());
        assert!(read_description(&mut body(&["abc"]), 4).await.is_err());
    }

    #[test]
    fn each_module_has_its_own_order_of_few_nodes() {
        let nodes: Vec<Arc<str>> = (0..40).map(|n| format!("node-{n}").into()).collect();
        let order_of =
            |digest: &str| order(nodes.clone(), &CompiledName::new(&digest.repeat(32), "0123456789abcdef").unwrap());
        let (first, second) = (order_of("ab"), order_of("cd"));
        assert_eq!((first.len(), second.len()), (NODES_MAX, NODES_MAX));
        assert_ne!(first, second);
        let mut reversed = nodes.clone();
        reversed.reverse();
        assert_eq!(order(reversed, &CompiledName::new(&"ab".repeat(32), "0123456789abcdef").unwrap()), first);
    }
}
