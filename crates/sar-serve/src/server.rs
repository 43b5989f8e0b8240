//! A port that is listened on, and the connections of it.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use axum::Router;
use burn::tensor::backend::Backend;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use sar_pipeline::Pipeline;
use sar_request::Engine;
use tokio::sync::Semaphore;

use crate::bodies::{Bodies, MOST_BODIES};
use crate::guard::Guard;
use crate::jobs::Jobs;
use crate::routes::{App, MOST_SENT, router};
use crate::stall::Impatient;
use crate::worker::work;
use crate::{Limits, ServeError, Settings};

/// How long it waits when the system gives it no connection.
const PAUSE: Duration = Duration::from_millis(50);
/// Lines and bytes of a request's head.
const MOST_HEADERS: usize = 64;
const MOST_HEAD: usize = 1 << 16;

/// A server that has its port, and is not answering yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    token: Option<String>,
    origin: Option<String>,
    router: Router,
    limits: Limits,
    jobs: Arc<Jobs>,
}

impl Server {
    /// Opens the port, and starts the thread that draws.
    ///
    /// # Errors
    /// If the settings would let strangers in, or the system gives no port or thread.
    pub fn bind<B: Backend>(pipeline: Pipeline<B>, settings: Settings) -> Result<Self, ServeError> {
        settings.check()?;
        let Settings { host, port, token, origin, runs, command, made_with, limits } = settings;
        let address = SocketAddr::new(host, port);
        let bind = |reason| ServeError::Bind { address, reason };
        let listener = TcpListener::bind(address).map_err(bind)?;
        listener.set_nonblocking(true).map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;

        let jobs = Arc::new(Jobs::new(limits));
        let drawer: Box<dyn Engine> = Box::new(pipeline.clone());
        let queue = Arc::clone(&jobs);
        thread::Builder::new()
            .name("draws".into())
            .spawn(move || work(&queue, &*drawer, &limits))
            .map_err(ServeError::System)?;
        let app = App {
            about: pipeline.about(),
            engine: Mutex::new(Box::new(pipeline)),
            jobs: Arc::clone(&jobs),
            runs,
            command,
            made_with,
            limits,
            bodies: Bodies::new(MOST_BODIES * limits.body),
            uploads: Arc::new(Semaphore::new(4)),
            reads: Arc::new(Semaphore::new(2)),
            sent: Arc::new(Semaphore::new(MOST_SENT)),
        };
        let router = router(app, Guard::new(address, token.clone(), origin.clone()));
        Ok(Self { listener, address, token, origin, router, limits, jobs })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What to open in a browser.
    pub fn url(&self) -> String {
        let place = self.origin.clone().unwrap_or_else(|| format!("http://{}", self.address));
        match &self.token {
            Some(token) => format!("{place}/?token={token}"),
            None => format!("{place}/"),
        }
    }

    /// Answers until the process ends.
    ///
    /// # Errors
    /// If the system gives no timer or sockets.
    pub fn run(self) -> Result<(), ServeError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ServeError::System)?;
        let Limits { connections, patience, .. } = self.limits;
        runtime
            .block_on(async {
                let listener = tokio::net::TcpListener::from_std(self.listener.try_clone()?)?;
                let room = Arc::new(Semaphore::new(connections));
                loop {
                    let Ok(place) = Arc::clone(&room).acquire_owned().await else { return Ok(()) };
                    let Ok((stream, _)) = listener.accept().await else {
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    };
                    // Events are small, and are not to wait for each other; it works without.
                    let _ = stream.set_nodelay(true);
                    let stream = TokioIo::new(Impatient::new(stream, patience));
                    let service = TowerToHyperService::new(self.router.clone());
                    tokio::spawn(async move {
                        let connection = http1::Builder::new()
                            .timer(TokioTimer::new())
                            .header_read_timeout(patience)
                            .max_headers(MOST_HEADERS)
                            .max_buf_size(MOST_HEAD)
                            .serve_connection(stream, service);
                        // A client that breaks off is no matter of ours.
                        let _ = connection.await;
                        drop(place);
                    });
                }
            })
            .map_err(ServeError::System)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.jobs.close();
    }
}
