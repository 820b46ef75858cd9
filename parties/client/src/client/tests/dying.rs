//! Nodes that die: which error the caller gets, how soon, and what it keeps.

use std::net::UdpSocket;

use tercet_net::{LinkKind, TokenChoice};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::generating::{favour, step};
use super::*;
use crate::GenerateOptions;

/// How soon a dead node is to be named, from the moment in which its connection breaks.
const SOON: Duration = Duration::from_secs(2);

/// Nodes of a model that generates. They give `steps` tokens and then wait for each other; the
/// receiver hears when P2 waits. The counter has how often P1 was asked to generate.
fn waiting_after(steps: usize) -> (Nodes, UnboundedReceiver<()>, Arc<AtomicUsize>) {
    let (waits, waiting) = unbounded_channel();
    let (asked, counts) = (Arc::new(AtomicUsize::new(0)), Mutex::new([0; 3]));
    let counted = asked.clone();
    let nodes = Nodes::start(move |party, message| {
        let inside = match &message {
            ClientMessage::Manifest { .. } => return Some(vec![fixture::answer(&fixture::decoder(32), 7)]),
            ClientMessage::Generate { options, .. } => {
                counted.fetch_add(usize::from(party == PartyId::P1), Ordering::SeqCst);
                matches!(options.choice, TokenChoice::Token { .. })
            }
            ClientMessage::Next { .. } => false,
            other => panic!("{other:?}"),
        };
        let mut counts = counts.lock().unwrap();
        let first = counts[party.index()];
        // Inside, all steps answer one message.
        let last = if inside { steps } else { steps.min(first + 1) };
        counts[party.index()] = last;
        if party == PartyId::P2 && (inside || first == steps) {
            waits.send(()).unwrap();
        }
        let answer = |_| if inside { step(party, &[2], 3) } else { favour(party, 2) };
        let answers: Vec<NodeMessage> = (first..last).map(answer).collect();
        (!answers.is_empty()).then_some(answers)
    });
    (nodes, waiting, asked)
}

/// In the prompt, in a step, and between two steps.
#[tokio::test]
async fn a_node_that_dies_in_a_generation_is_named_and_the_text_stays() {
    for (steps, inside) in [(0, false), (1, false), (2, false), (0, true), (2, true)] {
        let (nodes, mut waiting, asked) = waiting_after(steps);
        let client = nodes.client().await.unwrap();
        let options = GenerateOptions { inside, retries: 3, ..Default::default() };
        let mut generation = client.generate("small", "one", &options).await.unwrap();
        for _ in 0..steps {
            assert_eq!(generation.next().await.unwrap().unwrap().id, 2);
        }
        waiting.recv().await.unwrap();
        let dies = Instant::now();
        let (error, _) = tokio::join!(generation.next(), nodes.stop(PartyId::P2));
        let error = error.unwrap().unwrap_err();
        assert!(dies.elapsed() < SOON, "{steps} {inside}: {:?}", dies.elapsed());
        assert!(matches!(error, Error::Node { party: PartyId::P2, .. }), "{steps} {inside}: {error}");
        assert!(error.may_have_run() && error.to_string().contains("P2"), "{error}");
        assert_eq!(generation.text_so_far(), " two".repeat(steps));
        assert!(generation.next().await.is_none());
        assert_eq!(asked.load(Ordering::SeqCst), 1, "a dead node is not asked again");
    }
}

#[tokio::test]
async fn a_node_that_dies_in_a_request_is_named_and_not_asked_again() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    let (waits, mut waiting) = unbounded_channel();
    let nodes = Nodes::start(move |party, message| match (&message, party) {
        (ClientMessage::Run { .. }, _) => {
            RUNS.fetch_add(usize::from(party == PartyId::P0), Ordering::SeqCst);
            waits.send(()).unwrap();
            None
        }
        _ => Some(vec![good(&fixture::images(), 7, party, &message)]),
    });
    let client = nodes.client().await.unwrap();
    let options = Options { retries: 3, ..Options::default() };
    let dying = async {
        for _ in PartyId::ALL {
            waiting.recv().await.unwrap();
        }
        nodes.stop(PartyId::P1).await;
        Instant::now()
    };
    let (answer, died) = tokio::join!(client.classify("small", IMAGES, &options), dying);
    let error = answer.unwrap_err();
    assert!(died.elapsed() < SOON, "{:?}", died.elapsed());
    assert!(matches!(error, Error::Node { party: PartyId::P1, .. }) && error.may_have_run(), "{error}");
    assert_eq!(RUNS.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_node_that_cannot_be_dialled_is_named() {
    let nodes = Nodes::start(|party, message| Some(vec![good(&fixture::images(), 7, party, &message)]));
    let client = nodes.client().await.unwrap();
    client.model("small").await.unwrap();
    nodes.stop(PartyId::P0).await;
    let asked = Instant::now();
    let error = client.classify("small", IMAGES, &Options::default()).await.unwrap_err();
    assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    assert!(matches!(error, Error::Node { party: PartyId::P0, .. }) && !error.may_have_run(), "{error}");
    // The same for a client that is new.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let place = PeerAddress::new(LinkKind::Quic, silent.local_addr().unwrap());
    let asked = Instant::now();
    let gone = nodes.client_with(|mut config| {
        config.nodes[0].address = place;
        config
    });
    let error = gone.await.unwrap_err();
    assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    assert!(matches!(error, Error::Node { party: PartyId::P0, .. }) && !error.may_have_run(), "{error}");
}

/// The connection has not broken yet, and the others complain already: they are not to blame.
#[tokio::test]
async fn a_node_that_shows_no_life_is_named_although_the_others_complain() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    let nodes = Nodes::with_signs_of_life(|party, message| match (&message, party) {
        (ClientMessage::Run { .. } | ClientMessage::Models, PartyId::P2) => None,
        (ClientMessage::Models, _) => Some(vec![NodeMessage::Models(Vec::new())]),
        (ClientMessage::Run { .. }, _) => {
            RUNS.fetch_add(usize::from(party == PartyId::P0), Ordering::SeqCst);
            Some(vec![refused(Fault::Nodes)])
        }
        _ => Some(vec![good(&fixture::images(), 7, party, &message)]),
    });
    let client = nodes.client().await.unwrap();
    let asked = Instant::now();
    let options = Options { max_batch: 8, retries: 3, ..Options::default() };
    let error = client.classify("small", IMAGES, &options).await.unwrap_err();
    assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    let named = matches!(error, Error::Node { party: PartyId::P2, error: NetError::Deadline { .. }, .. });
    assert!(named && error.may_have_run(), "{error}");
    assert_eq!(RUNS.load(Ordering::SeqCst), 1);
}
