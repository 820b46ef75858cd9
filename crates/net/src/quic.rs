//! QUIC on one UDP port: sockets, settings by kind of network, and what its errors mean here.
//!
//! A connection begins with datagrams that pass everywhere and finds out, within a few round trips, whether those of its kind of
//! network do. The settings are measured ones: a datagram size that lets the kernel split big sends (ten datagrams must stay below
//! 64 KiB, or every batch fails silently) or, within one machine, is as large as such a batch, which takes a fifth off
//! what a byte costs there; windows that never stall a fast link; and on private links a fixed congestion window, which
//! loses nothing there and doubles the rate.

use std::any::Any;
use std::net::{SocketAddr, UdpSocket};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory, CubicConfig};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ConnectionError, ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, Runtime,
    TransportConfig, VarInt,
};
use rand::Rng;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use crate::egress::ShapedSocket;
use crate::identity::TLS_NAME;
use crate::link::{WireBytes, unwelcome};
use crate::mailbox::clean_reason;
use crate::{LinkShape, NetError, PublicKey, tls};

/// Bytes of receive credit a stream: enough for 10 Gbit/s at 12 ms.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 16 << 20;

/// Streams that anybody may have open at once, and bytes on all of them that may wait unread.
pub(crate) const STREAMS_AT_ONCE: u32 = 32;
/// Channels that a client may have open to a node at once: one stream is for control messages.
pub const CLIENT_CHANNELS: usize = STREAMS_AT_ONCE as usize - 1;
/// See [`STREAMS_AT_ONCE`].
pub(crate) const UNREAD_BYTES: u32 = 64 << 20;

/// Bytes that a client has sent and that wait unread, on all streams of one connection. With
/// [`crate::places::CONNECTIONS_OF_A_KEY`] connections, one key has 128 MiB wait here at most.
pub(crate) const CLIENT_UNREAD_BYTES: u32 = 16 << 20;
/// Bytes that a client has asked for and does not acknowledge, likewise: 64 MiB for one key.
const CLIENT_UNSENT_BYTES: u64 = 8 << 20;

/// Streams that another party may have open at once. What waits on them is bounded by each stream's window alone: a
/// session that is not read must not starve the others.
pub(crate) const PARTY_STREAMS_AT_ONCE: u32 = 256;
/// Without bound in practice; the largest number itself would overflow in quinn when added to what was read before.
const PARTY_UNREAD_BYTES: u64 = 1 << 40;

/// Datagrams that pass on every path of the internet, in bytes of UDP payload.
const FIRST_DATAGRAM_BYTES: u16 = 1200;

/// Bytes of socket buffer asked for; the kernel may grant less (`net.core.rmem_max`).
const SOCKET_BUFFER_BYTES: usize = 8 << 20;

/// What kind of network lies between the parties.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkProfile {
    /// One machine: datagrams of up to 65000 bytes, no congestion control. Held to a [`LinkShape`], as `Jumbo`: such
    /// datagrams travel on no network.
    Loopback,
    /// A private network with jumbo frames: 6500-byte datagrams, no congestion control.
    Jumbo,
    /// A local network with ordinary frames: 1452-byte datagrams.
    Lan1500,
    /// Anything: datagrams of up to 1452 bytes, and congestion control.
    #[default]
    Wan,
}

impl LinkProfile {
    /// Datagrams that such a network carries, in bytes of UDP payload. A connection begins with
    /// 1,200 bytes, which pass everywhere, and finds out whether these do.
    pub fn datagram_bytes(self) -> u16 {
        match self {
            Self::Loopback => 65000,
            Self::Jumbo => 6500,
            Self::Lan1500 => 1452,
            Self::Wan => 1452,
        }
    }

    /// Largest datagram that is taken, in bytes of UDP payload.
    fn largest_datagram_bytes(self) -> u16 {
        match self {
            Self::Loopback => u16::MAX - 8,
            other => other.datagram_bytes().max(1472) + 28,
        }
    }

    /// The profile of a network that has this shape.
    pub(crate) fn shaped(self, shape: LinkShape) -> Self {
        if self == Self::Loopback && !shape.is_none() { Self::Jumbo } else { self }
    }

    /// How often an idle connection shows that it lives, and after how much silence it is dead.
    ///
    /// A process that was killed says nothing, and whoever waits for it should hear so within two seconds. Four keep-alives in a
    /// row are lost on a path that loses one packet in ten once in ten thousand times; then nodes connect anew within moments, and
    /// what ran between them fails with an error that says so. A path that is silent for longer than this ends connections: that
    /// is the price, on any kind of network.
    pub(crate) fn keep_alive_and_idle(self) -> (Duration, Duration) {
        (Duration::from_millis(350), Duration::from_millis(1600))
    }

    /// Settings for a link that is held to `shape`: it decides what a round trip is before the first was measured, and how
    /// much must be in flight where that is fixed.
    fn transport(self, shape: LinkShape) -> TransportConfig {
        let mut transport = TransportConfig::default();
        let (keep_alive, idle) = self.keep_alive_and_idle();
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(self.datagram_bytes());
        transport
            .initial_mtu(FIRST_DATAGRAM_BYTES)
            .mtu_discovery_config(Some(discovery))
            .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
            .receive_window(VarInt::from_u32(UNREAD_BYTES))
            .send_window(64 << 20)
            .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_AT_ONCE))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .datagram_receive_buffer_size(None)
            .keep_alive_interval(Some(keep_alive))
            .max_idle_timeout(IdleTimeout::try_from(idle).ok());
        let near = Duration::from_millis(1).max(2 * shape.round_trip());
        match self {
            Self::Wan => {}
            Self::Lan1500 => {
                let mut cubic = CubicConfig::default();
                cubic.initial_window(32 * u64::from(self.datagram_bytes()));
                transport.initial_rtt(near).congestion_controller_factory(Arc::new(cubic));
            }
            Self::Loopback => {
                transport.initial_rtt(near).enable_segmentation_offload(false);
                transport.congestion_controller_factory(Arc::new(FixedWindow::for_link(shape)));
            }
            Self::Jumbo => {
                transport.initial_rtt(near).congestion_controller_factory(Arc::new(FixedWindow::for_link(shape)));
            }
        }
        transport
    }
}

/// A text that names no link profile.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no link profile: write loopback, jumbo, lan1500 or wan")]
pub struct ProfileError(String);

impl FromStr for LinkProfile {
    type Err = ProfileError;

    fn from_str(text: &str) -> Result<Self, ProfileError> {
        match text {
            "loopback" => Ok(Self::Loopback),
            "jumbo" => Ok(Self::Jumbo),
            "lan1500" => Ok(Self::Lan1500),
            "wan" => Ok(Self::Wan),
            _ => Err(ProfileError(text.chars().take(40).collect())),
        }
    }
}

impl std::fmt::Display for LinkProfile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Loopback => "loopback",
            Self::Jumbo => "jumbo",
            Self::Lan1500 => "lan1500",
            Self::Wan => "wan",
        })
    }
}

/// A congestion window that does not move, for links where nothing else competes.
#[derive(Clone)]
struct FixedWindow(u64);

impl FixedWindow {
    /// Bytes in flight; 2 MiB was the best of 1 to 16 over loopback.
    const BYTES: u64 = 2 << 20;

    /// Fills a longer link too, one and a half times over.
    fn for_link(shape: LinkShape) -> Self {
        let filled = shape.bytes_within(3 * shape.round_trip() / 2).unwrap_or(0);
        Self(Self::BYTES.max(filled.min(STREAM_WINDOW_BYTES.into())))
    }
}

impl Controller for FixedWindow {
    fn on_congestion_event(&mut self, _now: Instant, _sent: Instant, _persistent: bool, _lost_bytes: u64) {}
    fn on_mtu_update(&mut self, _new_mtu: u16) {}
    fn window(&self) -> u64 {
        self.0
    }
    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }
    fn initial_window(&self) -> u64 {
        self.0
    }
    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

impl ControllerFactory for FixedWindow {
    fn build(self: Arc<Self>, _now: Instant, _current_mtu: u16) -> Box<dyn Controller> {
        Box::new(self.as_ref().clone())
    }
}

/// Connection ids without meaning. (quinn's own are marked with a key of the process, so that a restarted node would
/// ignore packets for its former connections instead of resetting them, and its peers would wait for the idle timeout.)
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; 8];
        rand::rng().fill_bytes(&mut id);
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// One UDP socket that dials and, given a server configuration, listens.
pub(crate) struct QuicPort {
    endpoint: quinn::Endpoint,
    transport: Arc<TransportConfig>,
}

impl QuicPort {
    /// What leaves is held to `shape`. `reset_key` survives a restart of the process, so that a restarted node can tell its peers at once that their
    /// old connections are dead.
    pub(crate) fn bind(
        address: SocketAddr,
        server: Option<rustls::ServerConfig>,
        profile: LinkProfile,
        shape: LinkShape,
        reset_key: &[u8; 32],
    ) -> Result<Self, NetError> {
        let unbound = |error: std::io::Error| NetError::Bind { address, kind: "UDP", reason: error.to_string() };
        let socket = udp_socket(address).map_err(unbound)?;
        let profile = profile.shaped(shape);
        let transport = Arc::new(profile.transport(shape));
        let server = match server {
            None => None,
            Some(tls) => {
                let crypto = QuicServerConfig::try_from(tls).map_err(|error| NetError::local(error.to_string()))?;
                let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
                server.transport_config(transport.clone()).migration(false).max_incoming(256);
                Some(server)
            }
        };
        let mut config =
            EndpointConfig::new(Arc::new(aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, reset_key)));
        config
            .cid_generator(|| Box::new(RandomIds))
            .max_udp_payload_size(profile.largest_datagram_bytes())
            .map_err(|error| NetError::local(error.to_string()))?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let mut socket = runtime.wrap_udp_socket(socket).map_err(unbound)?;
        if !shape.is_none() {
            socket = Arc::new(ShapedSocket::new(socket, shape).map_err(unbound)?);
        }
        let endpoint = quinn::Endpoint::new_with_abstract_socket(config, server, socket, runtime).map_err(unbound)?;
        Ok(Self { endpoint, transport })
    }

    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        self.endpoint.local_addr().ok()
    }

    /// The next knock at the port; none when the endpoint is closed.
    pub(crate) async fn accept(&self) -> Option<quinn::Incoming> {
        self.endpoint.accept().await
    }

    pub(crate) async fn dial(
        &self,
        address: SocketAddr,
        tls: rustls::ClientConfig,
    ) -> Result<quinn::Connection, NetError> {
        let peer = address.to_string();
        let crypto = QuicClientConfig::try_from(tls).map_err(|error| NetError::local(error.to_string()))?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(self.transport.clone());
        let connecting = self.endpoint.connect_with(config, address, TLS_NAME);
        let connecting = connecting.map_err(|error| NetError::local(format!("cannot dial {address}: {error}")))?;
        connecting.await.map_err(|error| match error {
            ConnectionError::TimedOut => NetError::Unreachable { peer, reason: "no answer".into() },
            error => connection_error(&peer, &error),
        })
    }

    /// Closes everything and waits a moment for the closings to leave.
    pub(crate) async fn close(&self, reason: &str) {
        self.endpoint.close(VarInt::from_u32(0), reason.as_bytes());
        let _ = tokio::time::timeout(Duration::from_millis(500), self.endpoint.wait_idle()).await;
    }
}

fn udp_socket(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    // Linux reports twice what it granted.
    let granted = socket.recv_buffer_size()? / 2;
    if granted < SOCKET_BUFFER_BYTES {
        tracing::debug!(granted, asked = SOCKET_BUFFER_BYTES, "the kernel caps the socket buffer (net.core.rmem_max)");
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// The key that the other side proved to hold.
pub(crate) fn peer_key(connection: &quinn::Connection) -> Option<PublicKey> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    tls::key_of(chain.first()?)
}

/// Widens the bounds for a peer that has proved to be a party.
pub(crate) fn widen(connection: &quinn::Connection) {
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(PARTY_STREAMS_AT_ONCE));
    connection.set_receive_window(VarInt::from_u64(PARTY_UNREAD_BYTES).unwrap_or(VarInt::MAX));
}

/// Narrows the bounds for a peer that has proved to be a client: what one connection can have wait
/// here.
pub(crate) fn narrow(connection: &quinn::Connection) {
    connection.set_send_window(CLIENT_UNSENT_BYTES);
    connection.set_receive_window(VarInt::from_u32(CLIENT_UNREAD_BYTES));
}

pub(crate) fn wire_bytes(connection: &quinn::Connection) -> WireBytes {
    let stats = connection.stats();
    WireBytes { sent: stats.udp_tx.bytes, received: stats.udp_rx.bytes }
}

/// What the end of a QUIC connection means here.
pub(crate) fn connection_error(peer: &str, error: &ConnectionError) -> NetError {
    // RFC 9001: a TLS alert travels as 0x100 + its number.
    let alert = |code: u64| code.checked_sub(0x100).and_then(|alert| u8::try_from(alert).ok());
    match error {
        ConnectionError::TransportError(error) if alert(error.code.into()).is_some() => {
            NetError::Untrusted { peer: peer.into(), reason: error.reason.clone() }
        }
        ConnectionError::ConnectionClosed(close) => match alert(close.error_code.into()) {
            Some(alert) => unwelcome(peer, alert.into()),
            None => NetError::lost(peer, clean_reason(&String::from_utf8_lossy(&close.reason))),
        },
        ConnectionError::ApplicationClosed(close) => {
            NetError::lost(peer, clean_reason(&String::from_utf8_lossy(&close.reason)))
        }
        ConnectionError::Reset => NetError::lost(peer, "it restarted"),
        ConnectionError::TimedOut => NetError::lost(peer, "it fell silent"),
        ConnectionError::LocallyClosed => NetError::lost(peer, "closed by this side"),
        other => NetError::lost(peer, other.to_string()),
    }
}
