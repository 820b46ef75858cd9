//! Work at all three nodes at once. The first failure is decisive: it ends the wait for the other
//! two after a moment.

use std::pin::pin;
use std::time::Duration;

use tercet_net::PartyId;
use tokio::sync::watch;

use crate::Error;
use crate::links::Links;

/// How long the other nodes may take to report once one has failed, because the cause often comes
/// second; and how long each node may take to show that it lives, in the same moment.
pub(crate) const GRACE: Duration = Duration::from_millis(300);

/// Why there is no answer, and whether to ask again.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    /// Whether a fresh request may well succeed: the failure may pass, and all three nodes answered
    /// in the moment after it.
    pub(crate) again: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, again: false }
    }
}

/// How a part has failed, as the others are told.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Alarm {
    None,
    Lasting,
    /// It may pass: the nodes are asked whether they live.
    Passing,
}

/// The results of all three parts. When one fails, the others are given [`GRACE`] to say more about
/// the cause, and where the failure may pass the nodes are asked at the same time whether they
/// live. A node that does not is named.
pub(crate) async fn all<T>(
    links: &Links,
    parts: [impl Future<Output = Result<T, Error>>; 3],
) -> Result<[T; 3], Failure> {
    let (alarm, mut alarmed) = watch::channel(Alarm::None);
    let heed = |part| heed(part, &alarm);
    let [p0, p1, p2] = parts.map(heed);
    let mut heard = pin!(async { tokio::join!(p0, p1, p2) });
    let mut absent = pin!(async {
        // The sender lives as long as this function.
        let _ = alarmed.wait_for(|alarm| *alarm == Alarm::Passing).await;
        links.absent(GRACE).await
    });
    let (heard, absentee) = tokio::select! {
        heard = &mut heard => (heard, None),
        absentee = &mut absent => (heard.await, Some(absentee)),
    };
    let (mut worst, mut results) = (None::<Error>, Vec::new());
    for heard in [heard.0, heard.1, heard.2].into_iter().flatten() {
        match heard {
            Ok(result) => results.push(result),
            Err(error) if worst.as_ref().is_none_or(|worst| worst.weight() < error.weight()) => worst = Some(error),
            Err(_) => {}
        }
    }
    let error = match (worst, results.try_into()) {
        (None, Ok(results)) => return Ok(results),
        (worst, _) => worst.unwrap_or_else(|| Error::Misuse("no answer and no error".into())),
    };
    if !error.is_transient() {
        return Err(error.into());
    }
    let absentee = match absentee {
        Some(absentee) => absentee,
        None => absent.await,
    };
    Err(match absentee {
        None => Failure { error, again: true },
        // Where a node is gone, what the others say is a consequence.
        Some(gone) if gone.weight() > error.weight() => gone.into(),
        Some(_) => error.into(),
    })
}

/// A part that warns the others where it fails, and ends soon after another one has: then there is
/// no result.
async fn heed<T>(
    part: impl Future<Output = Result<T, Error>>,
    alarm: &watch::Sender<Alarm>,
) -> Option<Result<T, Error>> {
    let mut alarmed = alarm.subscribe();
    let given_up = async {
        let _ = alarmed.wait_for(|alarm| *alarm != Alarm::None).await;
        tokio::time::sleep(GRACE).await;
    };
    let heard = tokio::select! {
        heard = part => heard,
        () = given_up => return None,
    };
    if let Err(error) = &heard {
        let kind = if error.is_transient() { Alarm::Passing } else { Alarm::Lasting };
        alarm.send_if_modified(|alarm| {
            let louder = *alarm < kind;
            *alarm = kind.max(*alarm);
            louder
        });
    }
    Some(heard)
}

/// The same work at each node.
pub(crate) fn each<T, F>([p0, p1, p2]: [T; 3], work: impl Fn(PartyId, T) -> F) -> [F; 3] {
    [work(PartyId::P0, p0), work(PartyId::P1, p1), work(PartyId::P2, p2)]
}
