//! Servers that tests of remote sources talk to: one like S3, one like the Hugging Face hub and the plain web, with faults on demand.

mod hub;

pub use hub::{Fault, Hub, Request};

use axum::{Router, body::Body};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use std::path::Path;
use tokio::{net::TcpListener, runtime::Runtime};

/// A server on this machine; it stops when it is dropped.
#[derive(Debug)]
pub struct Server {
    address: String,
    runtime: Option<Runtime>,
}

impl Server {
    /// Serves on a free port of this machine.
    ///
    /// # Panics
    /// When there is none: a test has nothing to do then.
    #[must_use]
    pub fn start(router: Router) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a thread can be started");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port is free");
        let address = listener.local_addr().expect("a listener has an address");
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { address: format!("http://{address}"), runtime: Some(runtime) }
    }

    /// An S3 server whose buckets are the folders of `root`.
    ///
    /// # Panics
    /// When the folder cannot be used.
    #[must_use]
    pub fn s3(root: &Path, key: &str, secret: &str) -> Self {
        let files = s3s_fs::FileSystem::new(root).expect("a folder that can be served");
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(key, secret));
        let service = builder.build();
        let answer = move |request: axum::extract::Request| {
            let service = service.clone();
            async move {
                let request = request.map(s3s::Body::http_body_unsync);
                match service.call(request).await {
                    Ok(answer) => answer.map(Body::new),
                    Err(error) => panic!("the S3 server failed: {error:?}"),
                }
            }
        };
        Self::start(Router::new().fallback(answer))
    }

    /// `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
