//! TCP with TLS 1.3 on one port, for networks that block UDP.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use zeroize::Zeroizing;

use crate::identity::TLS_NAME;
use crate::link::WireBytes;
use crate::mux::{Below, Mux, io_error};
use crate::seed::EXPORT_LABEL;
use crate::{NetError, tls};

/// A listening socket. A node that was killed can come back to its port at once.
pub(crate) fn listen(address: SocketAddr) -> Result<TcpListener, NetError> {
    let bound = || -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(256)?;
        TcpListener::from_std(socket.into())
    };
    bound().map_err(|error| NetError::Bind { address, kind: "TCP", reason: error.to_string() })
}

/// Proves both keys on a connection that came in.
pub(crate) async fn establish(
    socket: TcpStream,
    address: SocketAddr,
    config: Arc<rustls::ServerConfig>,
    alive: (Duration, Duration),
) -> Result<Mux, NetError> {
    let peer = address.to_string();
    let (socket, counters) = Counted::new(socket).map_err(|error| io_error(&peer, &error))?;
    match TlsAcceptor::from(config).accept(socket).into_fallible().await {
        Ok(stream) => start(TlsStream::Server(stream), peer, counters, false, alive),
        Err((error, mut socket)) => {
            // Hang up gently: a reset would destroy the alert that tells the other side why.
            let _ = socket.shutdown().await;
            let drain =
                async { while matches!(tokio::io::AsyncReadExt::read(&mut socket, &mut [0; 4096]).await, Ok(1..)) {} };
            let _ = tokio::time::timeout(Duration::from_millis(500), drain).await;
            Err(io_error(&peer, &error))
        }
    }
}

/// Dials and proves both keys.
pub(crate) async fn dial(
    address: SocketAddr,
    config: rustls::ClientConfig,
    alive: (Duration, Duration),
) -> Result<Mux, NetError> {
    let peer = address.to_string();
    let connected = TcpStream::connect(address).await;
    let socket = connected.map_err(|error| NetError::Unreachable { peer: peer.clone(), reason: error.to_string() })?;
    let (socket, counters) = Counted::new(socket).map_err(|error| io_error(&peer, &error))?;
    let name = ServerName::try_from(TLS_NAME).map_err(|error| NetError::local(error.to_string()))?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await;
    let stream = stream.map_err(|error| io_error(&peer, &error))?;
    start(TlsStream::Client(stream), peer, counters, true, alive)
}

fn start(
    stream: TlsStream<Counted>,
    address: String,
    counters: Arc<Counters>,
    dialled: bool,
    alive: (Duration, Duration),
) -> Result<Mux, NetError> {
    let (_, session) = stream.get_ref();
    let untrusted = |reason: &str| NetError::Untrusted { peer: address.clone(), reason: reason.into() };
    if session.alpn_protocol() != Some(tls::ALPN) {
        return Err(untrusted("it does not speak tercet/1"));
    }
    let certificate: Option<&CertificateDer<'_>> = session.peer_certificates().and_then(|chain| chain.first());
    let peer_key = certificate.and_then(tls::key_of).ok_or_else(|| untrusted("it showed no key"))?;
    // The exporter's secret is fixed by the handshake, and there is one use for it.
    let exported = match &stream {
        TlsStream::Client(stream) => stream.get_ref().1.export_keying_material([0; 32], EXPORT_LABEL, Some(&[])),
        TlsStream::Server(stream) => stream.get_ref().1.export_keying_material([0; 32], EXPORT_LABEL, Some(&[])),
    };
    let exported = exported.map(Zeroizing::new).map_err(|_| NetError::local("the TLS session exports no key"))?;
    let below = Below { address, peer_key, counters, exported };
    Ok(Mux::start(stream, below, dialled, alive))
}

/// Bytes through one socket.
#[derive(Default)]
pub(crate) struct Counters {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Counters {
    pub(crate) fn read(&self) -> WireBytes {
        WireBytes { sent: self.sent.load(Ordering::Relaxed), received: self.received.load(Ordering::Relaxed) }
    }
}

/// A socket that counts.
pub(crate) struct Counted {
    socket: TcpStream,
    counters: Arc<Counters>,
}

impl Counted {
    fn new(socket: TcpStream) -> io::Result<(Self, Arc<Counters>)> {
        socket.set_nodelay(true)?;
        let counters = Arc::<Counters>::default();
        Ok((Self { socket, counters: counters.clone() }, counters))
    }

    fn wrote(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(count)) = &result {
            self.counters.sent.fetch_add(*count as u64, Ordering::Relaxed);
        }
        result
    }
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.socket).poll_read(cx, buf);
        self.counters.received.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        result
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
