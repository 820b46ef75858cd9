//! Three node processes on loopback of which one is killed: what a client hears, of whom, and how
//! soon.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tercet_client::{Client, ClientConfig, Error, GenerateOptions, Generation, Identity, LinkProfile, NodeAddress};
use tercet_net::PartyId;

/// A client must hear of a death sooner.
const SOON: Duration = Duration::from_secs(2);
/// The machine that tests run on may be busy with others: what is asserted.
const SOON_ON_A_BUSY_MACHINE: Duration = Duration::from_secs(6);

/// The name of the demonstration's model of texts.
const MODEL: &str = "gpt";
const PROMPT: &str = "Elizabeth was";

/// Node processes, with the files that `tercet demo --keep` leaves.
struct Nodes {
    stage: PathBuf,
    running: [Option<Child>; 3],
}

impl Nodes {
    fn config(&self) -> ClientConfig {
        let text = std::fs::read_to_string(self.stage.join("nodes.toml")).unwrap();
        let file: toml::Value = toml::from_str(&text).unwrap();
        let identity = Identity::load(&self.stage.join(file["identity"].as_str().unwrap())).unwrap();
        let nodes = ["p0", "p1", "p2"].map(|party| {
            let node = &file["peers"][party];
            let of = |key: &str| node[key].as_str().unwrap();
            NodeAddress { key: of("key").parse().unwrap(), address: of("address").parse().unwrap() }
        });
        ClientConfig { profile: LinkProfile::Loopback, ..ClientConfig::new(identity, nodes) }
    }

    fn start(&mut self, party: PartyId) {
        let config = self.stage.join(format!("p{}/node.toml", party.index()));
        let node = Command::new(env!("CARGO_BIN_EXE_tercet"))
            .args(["node", "--config"])
            .arg(config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.running[party.index()] = Some(node.unwrap());
    }

    /// SIGKILL: the process says nothing to anybody.
    fn kill(&mut self, party: PartyId) {
        let mut node = self.running[party.index()].take().unwrap();
        node.kill().unwrap();
        node.wait().unwrap();
    }

    /// A client, as soon as all three nodes run and know each other.
    async fn client(&self) -> Client {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let tried = async {
                let client = Client::connect(self.config()).await?;
                start(&client, 1).await?.text().await?;
                Ok::<_, Error>(client)
            };
            match tried.await {
                Ok(client) => return client,
                Err(error) => assert!(Instant::now() < deadline, "nodes do not serve: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for node in self.running.iter_mut().flatten() {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

fn staged(dir: &Path) -> Nodes {
    let shown = Command::new(env!("CARGO_BIN_EXE_tercet"))
        .args(["demo", "--generate", PROMPT, "--keep", "stage"])
        .current_dir(dir)
        .stdout(Stdio::null())
        .status();
    assert!(shown.unwrap().success());
    let mut nodes = Nodes { stage: dir.join("stage"), running: [const { None }; 3] };
    PartyId::ALL.into_iter().for_each(|party| nodes.start(party));
    nodes
}

async fn start(client: &Client, count: usize) -> Result<Generation, Error> {
    let options = GenerateOptions { max_new_tokens: count, ignore_eos: true, ..GenerateOptions::default() };
    client.generate(MODEL, PROMPT, &options).await
}

/// The tokens that come before the error, and the error.
async fn to_the_end(mut text: Generation) -> (usize, Error) {
    let mut tokens = 0;
    while let Some(token) = text.next().await {
        match token {
            Ok(_) => tokens += 1,
            Err(error) => return (tokens, error),
        }
    }
    panic!("it ended well, after {tokens} tokens");
}

#[test]
fn a_client_hears_of_a_killed_node_by_name_within_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = staged(dir.path());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut late = Vec::new();
    for party in PartyId::ALL {
        for phase in ["in a prompt", "in a step", "between requests", "while dialling"] {
            let client = runtime.block_on(nodes.client());
            let (killed, kept, error) = match phase {
                "in a prompt" => {
                    let asked = runtime.spawn({
                        let client = client.clone();
                        async move { to_the_end(start(&client, 200).await.unwrap()).await }
                    });
                    std::thread::sleep(Duration::from_millis(5));
                    nodes.kill(party);
                    let killed = Instant::now();
                    let (kept, error) = runtime.block_on(asked).unwrap();
                    (killed, kept, error)
                }
                "in a step" => {
                    let mut text = runtime.block_on(start(&client, 200)).unwrap();
                    for _ in 0..3 {
                        runtime.block_on(text.next()).unwrap().unwrap();
                    }
                    nodes.kill(party);
                    let killed = Instant::now();
                    let (kept, error) = runtime.block_on(to_the_end(text));
                    (killed, kept + 3, error)
                }
                "between requests" => {
                    nodes.kill(party);
                    let killed = Instant::now();
                    let error = runtime.block_on(async {
                        match start(&client, 200).await {
                            Ok(text) => to_the_end(text).await.1,
                            Err(error) => error,
                        }
                    });
                    (killed, 0, error)
                }
                _ => {
                    nodes.kill(party);
                    let killed = Instant::now();
                    let error = runtime.block_on(Client::connect(nodes.config())).expect_err("it connected");
                    (killed, 0, error)
                }
            };
            let took = killed.elapsed();
            println!("{party} killed {phase}: {:.2} s, {kept} tokens kept: {error}", took.as_secs_f64());
            let named = matches!(&error, Error::Node { party: at, .. } if *at == party)
                || matches!(&error, Error::Refused { .. }) && error.to_string().contains(&party.to_string());
            assert!(named, "{party} killed {phase}: {error}");
            assert!(took < SOON_ON_A_BUSY_MACHINE, "{party} killed {phase}: {took:?}");
            late.extend((took > SOON).then_some((party, phase, took)));
            nodes.start(party);
        }
    }
    println!("later than {SOON:?}: {late:?}");
}
