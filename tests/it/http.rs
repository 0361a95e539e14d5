//! The server over real sockets.

#[path = "http/admin.rs"]
mod admin;
#[path = "http/batch.rs"]
mod batch;
#[path = "http/bounds.rs"]
mod bounds;
#[path = "http/client.rs"]
mod client;
#[path = "http/end.rs"]
mod end;
#[path = "http/fence.rs"]
mod fence;
#[path = "http/keys.rs"]
mod keys;
#[path = "http/random.rs"]
mod random;
#[path = "http/routes.rs"]
mod routes;

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use sidereal::catalog::CatalogBuilder;
use sidereal::catalog::synthetic::{tiny_layout, tiny_records};
use sidereal::device::hash::HashDevice;
use sidereal::engine::{Engine, EngineBuilder};
use sidereal::server::{Ended, Server, ServerOptions};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// The demonstration's model and items on the hash device, whose steps take at least `step`.
fn engine_of(step: Duration, configure: impl FnOnce(EngineBuilder) -> EngineBuilder) -> Engine {
    let mut builder = CatalogBuilder::new(&tiny_layout().types);
    tiny_records().into_iter().for_each(|record| builder.push(record).unwrap());
    configure(EngineBuilder::tiny().unwrap())
        .catalog(Arc::new(builder.build().unwrap()))
        .device(move |config| Ok(Box::new(HashDevice::new(config, step)?)))
        .start()
        .unwrap()
}

fn quick_engine() -> Engine {
    engine_of(Duration::ZERO, |builder| builder)
}

/// A server with both listeners, on a runtime of its own.
struct Running {
    address: SocketAddr,
    admin: SocketAddr,
    engine: Engine,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Ended>>,
}

impl Running {
    fn start(engine: Engine, options: ServerOptions) -> Running {
        let (addresses, bound) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let own = engine.clone();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            let ended = runtime.block_on(async {
                let server = Server::new(own, options, None).unwrap();
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
                addresses.send((listener.local_addr().unwrap(), admin.local_addr().unwrap())).unwrap();
                server.serve(listener, Some(admin), stopped).await
            });
            runtime.shutdown_background();
            ended
        });
        let (address, admin) = bound.recv().unwrap();
        Running { address, admin, engine, stop: Some(stop), thread: Some(thread) }
    }

    fn quick() -> Running {
        Running::start(quick_engine(), ServerOptions::default())
    }

    /// Asks the server to drain.
    fn stop(&mut self) {
        self.stop.take().map(|stop| stop.send(()));
    }

    /// Waits for its end.
    fn wait(mut self) -> Ended {
        self.thread.take().unwrap().join().unwrap()
    }

    fn end(mut self) -> Ended {
        self.stop();
        self.wait()
    }
}

/// Waits for something that must come soon.
fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !is() {
        assert!(std::time::Instant::now() < deadline, "{what}: not within 30 s");
        std::thread::sleep(Duration::from_millis(2));
    }
}
