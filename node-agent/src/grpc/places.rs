//! Places for TCP connections: a bound for all of them, and one for each source, so that a caller who opens many and says
//! nothing takes no place from others.
//!
//! **Guarantees.** A place is free again when its connection ends. A connection on which nobody was admitted ends after
//! ten seconds.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::{Connected, TcpConnectInfo, TlsConnectInfo};

/// How long a connection may last before somebody on it shows who they are: room for a slow API server.
const UNKNOWN: Duration = Duration::from_secs(10);

/// How many there may be, and who has them.
#[derive(Debug)]
pub struct Places {
    all: usize,
    per_source: usize,
    taken: Mutex<HashMap<IpAddr, usize>>,
}

impl Places {
    pub fn new(all: usize, per_source: usize) -> Arc<Self> {
        Arc::new(Places { all, per_source, taken: Mutex::default() })
    }

    /// A place for a connection from `source`, if one is free.
    pub fn take(self: &Arc<Self>, source: IpAddr) -> Option<Place> {
        let source = source.to_canonical();
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, own) = (taken.values().sum::<usize>(), taken.get(&source).copied().unwrap_or_default());
        if all >= self.all || own >= self.per_source {
            return None;
        }
        taken.insert(source, own + 1);
        Some(Place { places: self.clone(), source })
    }
}

/// A place, until it is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    source: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.source) {
            *own -= 1;
        }
        taken.retain(|_, own| *own > 0);
    }
}

/// What requests are told of their connection.
#[derive(Clone, Debug)]
pub struct Connection {
    pub tls: TlsConnectInfo<TcpConnectInfo>,
    /// Set once a request was admitted.
    pub admitted: Arc<AtomicBool>,
}

/// A connection in its place.
#[derive(Debug)]
pub struct Placed {
    stream: TlsStream<TcpStream>,
    _place: Place,
    admitted: Arc<AtomicBool>,
    unknown: Pin<Box<Sleep>>,
}

impl Placed {
    pub fn new(stream: TlsStream<TcpStream>, place: Place) -> Self {
        let unknown = Box::pin(tokio::time::sleep(UNKNOWN));
        Placed { stream, _place: place, admitted: Arc::default(), unknown }
    }
}

impl Connected for Placed {
    type ConnectInfo = Connection;
    fn connect_info(&self) -> Connection {
        Connection { tls: self.stream.connect_info(), admitted: self.admitted.clone() }
    }
}

impl AsyncRead for Placed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.admitted.load(Ordering::Relaxed) && self.unknown.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Placed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_cannot_take_the_places_of_others() {
        let places = Places::new(3, 2);
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let first = places.take(one).unwrap();
        let _second = places.take("::ffff:10.0.0.1".parse().unwrap()).unwrap();
        assert!(places.take(one).is_none(), "its share is taken");
        let _third = places.take(other).unwrap();
        assert!(places.take(other).is_none(), "all are taken");
        drop(first);
        assert!(places.take(other).is_some());
        assert!(places.take(one).is_some());
    }
}
