//! The command as its users meet it: exit codes, one-line errors, and the demonstration.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn command(args: &[&str], dir: &Path) -> Command {
    let program = env!("CARGO_BIN_EXE_tercet");
    let mut command = Command::new(program);
    command.args(args).current_dir(dir).env_remove("TERCET_NODES").env("TERCET_CACHE", dir.join("cache"));
    command
}

fn tercet(args: &[&str], dir: &Path) -> Output {
    command(args, dir).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The command fails with one line that says this.
fn fails(args: &[&str], dir: &Path, cause: &str) {
    let output = tercet(args, dir);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
    let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(errors.len() == 1 && errors[0].contains(cause), "{args:?}: {said}");
}

#[test]
fn keys_are_made_once_and_shown_as_cards() {
    let dir = tempfile::tempdir().unwrap();
    let made = tercet(&["keygen", "--out", "node.key"], dir.path());
    assert!(made.status.success(), "{}", said(&made));
    let key = String::from_utf8(made.stdout).unwrap();
    fails(&["keygen", "--out", "node.key"], dir.path(), "exists already");
    let card = tercet(&["card", "node.key", "--party", "p1", "--address", "quic://h:1"], dir.path());
    let card = String::from_utf8(card.stdout).unwrap();
    assert_eq!(card, format!("[peers.p1]\nkey = \"{}\"\naddress = \"quic://h:1\"\n", key.trim()));
    fails(&["card", "other.key"], dir.path(), "other.key");
    let bare = tercet(&["card", "node.key"], dir.path());
    assert_eq!(String::from_utf8(bare.stdout).unwrap(), key);
    fails(&["card", "node.key", "--party", "p3"], dir.path(), "no party p3");
}

#[test]
fn asked_wrongly_is_another_exit_code_than_failed() {
    let dir = tempfile::tempdir().unwrap();
    for args in
        [&["dance"][..], &[], &["embed"], &["plan"], &["share", ".", "--profile", "slow"], &["card", "--address", "x"]]
    {
        assert_eq!(tercet(args, dir.path()).status.code(), Some(2), "{args:?}");
    }
    fails(&["embed", "--model", "m", "text"], dir.path(), "nodes.toml");
    fails(&["inspect", "nowhere"], dir.path(), "no directory");
    let gpt2 = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/gpt2").display().to_string();
    fails(&["diff", &gpt2, "a text"], dir.path(), "continues texts");
    fails(&["demo", "--model", "llama"], dir.path(), "digits and minilm");
    fails(&["demo", "a sentence"], dir.path(), "--model minilm");
    fails(&["node", "run", "--config", "none.toml"], dir.path(), "none.toml");
    fails(&["plan", "none.tercet", "--rows", "3"], dir.path(), "none.tercet");
    fails(&["fetch", "llama"], dir.path(), "unknown model");
    fails(&["plan", "llama-7b"], dir.path(), "give --rows from 1, --context from 2, to 2048 tokens");
    fails(&["plan", "llama-7b", "--context", "2049"], dir.path(), "2049 tokens; the context of llama-7b is 2048");
    fails(&["plan", "llama-7b", "--context", "1"], dir.path(), "follows one token at least");
    fails(&["plan", "bert-tiny", "--context", "9"], dir.path(), "models that continue texts");
}

/// A prompt comes as an argument or on the standard input; the nodes are asked only then.
#[test]
fn a_prompt_may_come_on_the_standard_input() {
    let dir = tempfile::tempdir().unwrap();
    fails(&["generate", "--model", "m"], dir.path(), "no prompt");
    fails(&["generate", "--model", "m", ""], dir.path(), "no prompt");
    fails(&["generate", "--model", "m", "Once"], dir.path(), "nodes.toml");
    std::fs::write(dir.path().join("prompt"), "Once\n").unwrap();
    let input = Stdio::from(std::fs::File::open(dir.path().join("prompt")).unwrap());
    let output = command(&["generate", "--model", "m"], dir.path()).stdin(input).output().unwrap();
    assert!(output.status.code() == Some(1) && said(&output).contains("nodes.toml"), "{}", said(&output));
}

#[test]
fn a_directory_that_is_no_model_is_refused_with_all_its_problems() {
    let dir = tempfile::tempdir().unwrap();
    let config = r#"{"architectures": ["BertModel"], "model_type": "bert"}"#;
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    let output = tercet(&["inspect", "."], dir.path());
    assert_eq!(output.status.code(), Some(1));
    let said = said(&output);
    for missing in ["model.safetensors", "tokenizer.json", "hidden_size"] {
        assert!(said.contains(missing), "{said}");
    }
}

/// Shares of the digits, priced; and the files of a demonstration, each of which its command takes.
#[test]
fn the_demonstration_agrees_with_the_plain_model_and_leaves_usable_files() {
    let dir = tempfile::tempdir().unwrap();
    let shown = tercet(&["demo", "--digits", "6", "--json", "--keep", "stage"], dir.path());
    assert!(shown.status.success(), "{}", said(&shown));
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["agreement"], 6);
    assert!(shown["max_error"].as_f64().unwrap() < 0.1);
    let request = &shown["cost"]["requests"][0];
    fails(&["demo", "--keep", "stage"], dir.path(), "give --keep another folder");

    let share = "stage/p1/digits.p1.tercet";
    let plan = tercet(&["plan", share, "--batch", "6", "--json"], dir.path());
    assert!(plan.status.success(), "{}", said(&plan));
    let plan: serde_json::Value = serde_json::from_slice(&plan.stdout).unwrap();
    assert_eq!(plan["plan"]["total"]["rounds"], request["rounds"], "the plan knows the rounds");
    assert_eq!(plan["plan"]["total"]["bytes"], request["bytes"], "and every byte");
    assert!(plan["seconds"].is_null(), "nothing is foretold of a machine that was not measured");
    let said_plan = |args: &[&str]| {
        let plan = tercet(&[&["plan", share], args].concat(), dir.path());
        assert!(plan.status.success(), "{}", said(&plan));
        String::from_utf8(plan.stdout).unwrap()
    };
    assert!(said_plan(&["--link", "2ms,1gbit"]).contains("not measured: run `tercet plan --measure`"));
    let rates = dir.path().join("cache/bench/rates");
    std::fs::create_dir_all(&rates).unwrap();
    std::fs::write(rates.join("fast.json"), r#"{"kind": "tercet rates", "schema": 1}"#).unwrap();
    assert!(said_plan(&[]).contains("damaged; run `tercet plan --measure`"));

    let config = tercet(&["node", "config", "--config", "stage/p1/node.toml", "--threads", "3"], dir.path());
    let config = String::from_utf8(config.stdout).unwrap();
    let threads = config.lines().find(|line| line.starts_with("threads")).unwrap();
    assert_eq!(threads.split_whitespace().collect::<Vec<_>>(), ["threads", "flag", "3"]);

    let share = dir.path().join(share);
    let mut bytes = std::fs::read(&share).unwrap();
    bytes[4096] ^= 1;
    std::fs::write(&share, bytes).unwrap();
    fails(&["node", "--config", "stage/p1/node.toml"], dir.path(), "checksum");

    let stage = dir.path().join("stage");
    assert_eq!(std::fs::metadata(&stage).unwrap().permissions().mode() & 0o777, 0o700);
    only_for_its_owner(&stage);
    std::fs::set_permissions(&share, std::fs::Permissions::from_mode(0o644)).unwrap();
    fails(&["node", "--config", "stage/p1/node.toml"], dir.path(), "(mode 644): run `chmod 600 ");
    let doctor = tercet(&["doctor", "--config", "stage/p1/node.toml"], dir.path());
    let doctor = String::from_utf8(doctor.stdout).unwrap();
    let exposed = doctor.lines().find(|line| line.starts_with("BAD   share")).unwrap_or_default();
    assert!(doctor.matches("BAD   share").count() == 1 && exposed.contains("(mode 644)"), "{doctor}");
}

/// A disk that takes no more stops the owner with one line, and leaves no part of a share.
#[test]
fn a_share_that_finds_no_room_leaves_no_file_behind() {
    let dir = tempfile::tempdir().unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/digits/model");
    // A limit on the size of files stands for the full disk: 64 blocks, less than the share of an
    // evaluator.
    let limited = "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\"";
    let output = Command::new("sh")
        .args(["-c", limited, env!("CARGO_BIN_EXE_tercet"), "share"])
        .arg(model)
        .args(["--name", "digits", "--out", "shares"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    let said = said(&output);
    assert!(output.status.code() == Some(1) && said.contains("digits.p1.tercet: File too large"), "{said}");
    for party in ["p0", "p1", "p2"] {
        let left: Vec<_> = std::fs::read_dir(dir.path().join("shares").join(party)).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Nobody else may read what is in a folder, or enter the folders in it; the shipped model among
/// them is public.
fn only_for_its_owner(folder: &Path) {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    for entry in entries.filter(|entry| entry.file_name() != "model") {
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        let inner = entry.file_type().unwrap().is_dir();
        assert_eq!(mode, if inner { 0o700 } else { 0o600 }, "{}", entry.path().display());
        if inner {
            only_for_its_owner(&entry.path());
        }
    }
}

/// The smallest model between three processes: measured, recorded, shown, and held to its record.
#[test]
fn a_measurement_is_recorded_and_compared() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = ["bench", "run", "--model", "bert-tiny", "--rows", "8", "--runs", "2"];
    let out = ["--batch", "1,2", "--json", "out/run.json", "--html", "out/run.html"];
    let run = tercet(&[&tiny[..], &out].concat(), dir.path());
    assert!(run.status.success(), "{}", said(&run));
    let table = String::from_utf8_lossy(&run.stdout);
    assert!(table.contains("bert-tiny 2 x 8") && !table.contains("NOT AS PLANNED"), "{table}");
    let record = dir.path().join("out/run.json");
    let text = std::fs::read_to_string(&record).unwrap();
    let measured: serde_json::Value = serde_json::from_str(&text).unwrap();
    let cases = measured["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 2);
    for case in cases {
        assert_eq!(case["cost"], case["planned"], "the plan knows rounds, frames and bytes");
        assert!(case["layers"].as_array().unwrap().iter().any(|layer| layer["name"] == "layer1"), "{}", case["layers"]);
        assert!(case["error"]["cosine"].as_f64().unwrap() > 0.99, "{}", case["error"]);
        assert!(case["processes"].as_array().unwrap().iter().all(|process| process["peak_bytes"].as_u64() > Some(0)));
        let wire = |from: usize, to: usize| case["wire_bytes"][from][to].as_u64().unwrap();
        assert!(wire(1, 2) > case["cost"]["bytes"][1][2].as_u64().unwrap(), "QUIC adds to the session's bytes");
    }
    let page = std::fs::read_to_string(dir.path().join("out/run.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("bert-tiny 2 x 8"));

    // The next run finds the shares, and costs the same to the byte.
    let again = tercet(&["bench", "compare", "out/run.json", "--runs", "1", "--warmup", "0"], dir.path());
    assert!(again.status.success(), "{}{}", String::from_utf8_lossy(&again.stdout), said(&again));
    assert!(said(&run).contains("sharing bert-tiny") && !said(&again).contains("sharing"));
    let rounds = format!("\"rounds\": {}", cases[0]["cost"]["rounds"]);
    let fewer = format!("\"rounds\": {}", cases[0]["cost"]["rounds"].as_u64().unwrap() - 1);
    std::fs::write(dir.path().join("better.json"), text.replace(&rounds, &fewer)).unwrap();
    let better = ["bench", "compare", "better.json", "--against", "out/run.json"];
    fails(&better, dir.path(), "regressions, the first: bert-tiny 1 x 8: rounds was");
    let worse = tercet(&["bench", "compare", "out/run.json", "--against", "better.json", "--json"], dir.path());
    let worse: serde_json::Value = serde_json::from_slice(&worse.stdout).unwrap();
    assert_eq!(worse["improvements"].as_array().unwrap().len(), 2);
    let shown = tercet(&["bench", "show", "out/run.json", "better.json"], dir.path());
    assert_eq!(String::from_utf8(shown.stdout).unwrap().matches("bert-tiny 2 x 8").count(), 4);

    std::fs::write(dir.path().join("none.json"), "{\"a\": 1}").unwrap();
    fails(&["bench", "compare", "none.json"], dir.path(), "none.json is no record");
    fails(&["bench", "compare", "absent.json"], dir.path(), "absent.json");
    fails(&["bench", "run", "--html", "none.json/x.html"], dir.path(), "cannot write none.json/x.html");
    fails(&["bench", "run", "--model", "bert"], dir.path(), "there are bert-tiny");
    fails(&["bench", "run", "--model", "minilm"], dir.path(), "tercet fetch minilm");
    fails(&[&tiny[..4], &["--rows", "513"]].concat(), dir.path(), "bert-tiny 1 x 513 cannot be run");
    fails(&[&tiny[..4], &["--batch", "0"]].concat(), dir.path(), "cannot be run");
    fails(&[&tiny[..4], &["--link", "slow"]].concat(), dir.path(), "no link shape");
}

/// What LLaMA-7B costs by its shape alone, within what was promised of it.
#[test]
fn a_model_of_which_the_shape_alone_is_known_is_priced() {
    let dir = tempfile::tempdir().unwrap();
    for context in ["128", "2048"] {
        let plan = tercet(&["plan", "llama-7b", "--rows", "128", "--context", context, "--json"], dir.path());
        assert!(plan.status.success(), "{}", said(&plan));
        let plan: serde_json::Value = serde_json::from_slice(&plan.stdout).unwrap();
        assert_eq!(plan["assumed"], true);
        for (step, tokens) in [("prefill", 128), ("decode", 1)] {
            let total = &plan[step]["total"];
            let online = [[1, 2], [2, 1]].map(|[from, to]| total["bytes"][from][to].as_u64().unwrap() / tokens);
            assert!(
                online.iter().all(|bytes| (1_000_000..60_000_000).contains(bytes)),
                "{step} at {context}: {online:?}"
            );
            assert!(
                (32..=1500).contains(&total["rounds"].as_u64().unwrap()),
                "{step} at {context}: {}",
                total["rounds"]
            );
        }
        let caches = plan["decode"]["cache_bytes"][1].as_u64().unwrap();
        // Keys and values of every layer, each in 32 bits at least.
        assert!(caches >= context.parse::<u64>().unwrap() * 2 * 32 * 4096 * 4, "{caches}");
    }
}

/// Generations of the smallest decoder between three processes, alone and side by side, by the client's choice and inside.
#[test]
fn generations_are_measured_and_cost_what_is_planned() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = ["bench", "generate", "--model", "gpt2-tiny", "--rows", "9", "--new", "3"];
    for (inside, choice) in [(&[][..], false), (&["--inside"], true)] {
        let out = ["--sessions", "1,2", "--json", "out.json"];
        let run = tercet(&[&tiny[..], &out, inside].concat(), dir.path());
        // Fails where a lone generation cost anything else.
        assert!(run.status.success(), "{}", said(&run));
        let table = String::from_utf8_lossy(&run.stdout);
        assert!(table.contains("1 x 9 + 3") && table.contains("2 x 9 + 3"), "{table}");
        let text = std::fs::read_to_string(dir.path().join("out.json")).unwrap();
        let measured: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(measured["inside"], choice);
        let cases = measured["cases"].as_array().unwrap();
        assert_eq!(cases[0]["as_planned"], true);
        assert_eq!(cases[0]["counted"], cases[0]["planned"], "the plan knows rounds and bytes");
        assert!(cases[0]["rounds_per_layer"].as_f64().unwrap() <= 40.0);
        assert_eq!(cases[1]["steps"].as_array().unwrap().len(), 4);
        for case in cases {
            assert!(case["peak_bytes"].as_array().unwrap().iter().all(|bytes| bytes.as_u64() > Some(0)));
            assert!(case["received"][1].as_u64() > Some(0));
        }
    }
    fails(&["bench", "generate", "--model", "bert-tiny"], dir.path(), "`tercet bench run` measures it");
    fails(&["bench", "run", "--model", "gpt2-tiny"], dir.path(), "`tercet bench generate` measures it");
    fails(&["bench", "generate", "--model", "gpt"], dir.path(), "there are bert-tiny");
    fails(&[&tiny[..4], &["--rows", "1020"]].concat(), dir.path(), "1 x 1020 + 16 cannot be run");
    fails(&[&tiny[..4], &["--sessions", "0"]].concat(), dir.path(), "one generation at least");
    fails(&[&tiny[..4], &["--link", "slow"]].concat(), dir.path(), "no link shape");
}

/// A decoder shared for shorter texts and a window costs less, and only a decoder can be.
#[test]
fn a_decoder_is_shared_with_a_window_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures");
    let gpt2 = fixtures.join("gpt2").display().to_string();
    let price = |name: &str, more: &[&str]| {
        let args = [&["share", gpt2.as_str(), "--name", name, "--out", "shares"][..], more].concat();
        let output = tercet(&args, dir.path());
        assert!(output.status.success(), "{}", said(&output));
        let share = format!("shares/p1/{name}.p1.tercet");
        let plan = tercet(&["plan", &share, "--context", "200", "--json"], dir.path());
        assert!(plan.status.success(), "{}", said(&plan));
        let plan: serde_json::Value = serde_json::from_slice(&plan.stdout).unwrap();
        plan["decode"]["total"]["bytes"][1][2].as_u64().unwrap()
    };
    let (whole, shorter) = (price("whole", &[]), price("shorter", &["--context", "200"]));
    let window = price("window", &["--context", "200", "--window", "32", "--global", "4"]);
    assert!(window < shorter && shorter <= whole, "{window} {shorter} {whole}");
    let bert = fixtures.join("bert_encoder").display().to_string();
    fails(
        &["share", &bert, "--name", "b", "--out", "o", "--window", "8"],
        dir.path(),
        "for models that continue texts",
    );
    fails(&["plan", "shares/p1/shorter.p1.tercet", "--context", "201"], dir.path(), "200");
    for folder in ["shares", "shares/p1"] {
        fails(&["plan", folder, "--context", "9"], dir.path(), "shorter.p");
        fails(&["plan", folder, "--context", "9"], dir.path(), "holds shares of several models");
    }
}

/// A public gate is said loudly when it is shared and when it is priced, and there is none without experts.
#[test]
fn a_public_gate_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures");
    let of = |name: &str| fixtures.join(name).display().to_string();
    let output = tercet(&["share", &of("mixtral"), "--name", "m", "--out", "shares", "--public-gate"], dir.path());
    assert!(
        output.status.success() && said(&output).contains("PUBLIC GATE: all three nodes learn"),
        "{}",
        said(&output)
    );
    let plan = tercet(&["plan", "shares/p1/m.p1.tercet", "--context", "9"], dir.path());
    let priced = String::from_utf8(plan.stdout).unwrap();
    assert!(priced.contains("PUBLIC GATE: all three nodes learn") && priced.contains("P1→P0"), "{priced}");
    // The folders of the only model are as good as its file.
    for folder in ["shares", "shares/p2"] {
        let plan = tercet(&["plan", folder, "--context", "9"], dir.path());
        assert_eq!(String::from_utf8_lossy(&plan.stdout), priced, "{folder}: {}", said(&plan));
    }
    fails(&["share", &of("llama"), "--name", "l", "--out", "o", "--public-gate"], dir.path(), "mixtures of experts");
    fails(&["plan", &of("llama"), "--context", "9", "--public-gate"], dir.path(), "mixtures of experts");
    fails(&["plan", "shares/p1/m.p1.tercet", "--context", "9", "--public-gate"], dir.path(), "is shared already");
}

/// A base whose layers are public, and a secret adapter on it: what is said, what is written, what is refused.
#[test]
fn an_adapter_is_shared_on_its_base() {
    let dir = tempfile::tempdir().unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures");
    let path = |name: &str| fixtures.join(name).display().to_string();
    let (llama, gpt2, adapter, stranger) = (path("llama"), path("gpt2"), path("adapters/llama"), path("adapters/gpt2"));
    let share = |more: &[&str]| {
        let args = [&["share", llama.as_str(), "--out", "shares"][..], more].concat();
        let output = tercet(&args, dir.path());
        assert!(output.status.success(), "{}", said(&output));
        output
    };
    let output =
        share(&["--name", "base", "--profile", "precise", "--public", "layer*/ffn/*", "--public", "*/qkv/weight"]);
    let warning = said(&output);
    assert!(warning.contains("PUBLIC WEIGHTS: 8 tensors") && warning.contains("layer1/ffn/down/weight"), "{warning}");
    assert!(!warning.contains("PUBLIC TABLE") && !warning.contains("head/scores/weight"), "{warning}");
    let output = share(&["--name", "tuned", "--adapter", &adapter, "--base", "shares", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["profile"], &report["public"]), (&"precise".into(), &serde_json::json!([])));
    let bytes = |file: &str| std::fs::metadata(dir.path().join(file)).unwrap().len();
    for party in 0..3 {
        let of = |name: &str| bytes(&format!("shares/p{party}/{name}.p{party}.tercet"));
        assert!(of("tuned") < of("base"), "{} and {}", of("tuned"), of("base"));
    }
    // A base is found by its file as well, and everything may be public.
    let output = share(&["--name", "open", "--public", "*"]);
    assert!(said(&output).contains("goes to every client"), "{}", said(&output));
    let on = |base: &'static str| {
        [&["share", llama.as_str(), "--out", "o", "--name", "n", "--adapter", &adapter, "--base"][..], &[base]].concat()
    };
    fails(&on("shares"), dir.path(), "holds shares of");
    fails(&on("shares/p1/tuned.p1.tercet"), dir.path(), "something else");
    share(&["--name", "short", "--context", "64"]);
    fails(&on("shares/p1/short.p1.tercet"), dir.path(), "--context");
    fails(&on("nowhere"), dir.path(), "nowhere");
    fails(&["share", &llama, "--out", "o", "--name", "n", "--public", "layer9/*"], dir.path(), "matches no tensor");
    let other = [
        &["share", gpt2.as_str(), "--out", "o", "--name", "n", "--adapter", &stranger, "--base"][..],
        &["shares/p0/base.p0.tercet"],
    ];
    fails(&other.concat(), dir.path(), "not one of this model");
    fails(&["inspect", &gpt2, "--adapter", &adapter], dir.path(), "adapter");
    let refused = said(&tercet(&["inspect", &gpt2, "--adapter", &adapter], dir.path()));
    assert!(refused.contains("model.layers.1.mlp.down_proj: the base has no linear layer of this name"), "{refused}");
    let shown = tercet(&["inspect", &llama, "--adapter", &adapter], dir.path());
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("layer0/attention/qkv by rank 6") && shown.contains("precise     fits"), "{shown}");
    assert_eq!(
        tercet(&["share", &llama, "--out", "o", "--name", "n", "--adapter", &adapter], dir.path()).status.code(),
        Some(2)
    );
}
