//! Connections: how many, how long a client may keep one waiting, and their end.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use runtime::run::Shutdown;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Pause before a connection is accepted where the system has just given none.
const AGAIN: Duration = Duration::from_millis(100);
/// Bytes of a connection's reads that wait for whoever handles them, at most: what many uploads at once hold.
const READ_BYTES: usize = 64 << 10;
/// Requests in flight have this long to be answered when the gateway stops.
const DRAIN_WAIT: Duration = Duration::from_secs(5);

/// Serves connections until `shutdown`; `most` at once.
pub async fn serve(listener: TcpListener, router: Router, idle: Duration, most: usize, mut shutdown: Shutdown) {
    let slots = Arc::new(Semaphore::new(most));
    loop {
        let accepted = async {
            let slot = slots.clone().acquire_owned().await;
            (listener.accept().await, slot)
        };
        let (accepted, slot) = tokio::select! {
            accepted = accepted => accepted,
            () = begun(&mut shutdown) => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let (router, shutdown) = (router.clone(), shutdown.clone());
                tokio::spawn(async move {
                    connection(stream, router, idle, shutdown).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed, retrying");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(DRAIN_WAIT, slots.acquire_many(u32::try_from(most).unwrap_or(u32::MAX))).await;
}

async fn connection(stream: TcpStream, router: Router, idle: Duration, mut shutdown: Shutdown) {
    // TCP_USER_TIMEOUT ends a connection whose client takes nothing of what was written to it: its handler may have given up
    // long ago, but hyper waits for the last bytes without an end, and the connection would stay counted.
    let set = stream.set_nodelay(true).and_then(|()| SockRef::from(&stream).set_tcp_user_timeout(Some(idle)));
    if let Err(error) = set {
        tracing::debug!(%error, "setting TCP_NODELAY and TCP_USER_TIMEOUT failed");
    }
    // Without half_close a client that hangs up ends the handler of its request.
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(READ_BYTES)
        .half_close(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = begun(&mut shutdown) => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(DRAIN_WAIT, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

/// Waits until the gateway is to stop.
async fn begun(shutdown: &mut Shutdown) {
    // Whoever could say so may be gone, which says it too.
    let _ = shutdown.wait_for(|&s| s).await;
}
