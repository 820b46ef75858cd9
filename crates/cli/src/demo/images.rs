//! The demonstration on handwritten digits.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;
use tercet_client::{Classification, Inputs, Options};
use tercet_examples::digits::{self, Digit};
use tercet_model::{Model, Oracle, OracleInput};

use super::cost::Bill;
use super::{Args, Stage, glimpse};
use crate::screen::{say, say_json};

/// Digits side by side in the terminal.
const A_ROW: usize = 5;
/// Training digits that the owner looks at beside the built-in images.
const CALIBRATION: usize = 100;

pub(super) async fn show(args: &Args, dir: &Path) -> Result<()> {
    let model_dir = dir.join("model");
    digits::write_model(&model_dir)?;
    let model = Model::load(&model_dir)?;
    let patches = |digit: &Digit| anyhow::Ok(OracleInput::Patches(model.graph.input.patches(&digit.pixels)?));
    let more = digits::train_split().iter().take(CALIBRATION).map(patches).collect::<Result<_>>()?;
    let test = digits::test_split();
    let test = if args.test_split { &test[..] } else { &test[..usize::from(args.digits)] };

    let oracle = Oracle::new(&model)?;
    let plain = test.iter().map(|digit| Ok(oracle.run(&patches(digit)?)?.output().to_vec()));
    let plain = plain.collect::<Result<Vec<Vec<f32>>>>()?;

    let mut stage = Stage::set(args, dir, model, "digits", more).await?;
    let client = stage.cluster.client(stage.name).await?;
    let images: Vec<&[f32]> = test.iter().map(|digit| &digit.pixels[..]).collect();
    // The first request of all pays for connections and pages that later ones find.
    let options = args.with_flame(Options { max_batch: 20, ..Options::default() });
    client.classify(stage.name, Inputs::Images(&images[..1]), &options).await?;

    let begun = Instant::now();
    let found = client.classify(stage.name, Inputs::Images(&images), &options).await?;
    let elapsed = begun.elapsed();
    args.write_flame(&found.usage)?;
    let bill = Bill::of(&client, elapsed, test.len(), found.usage.clone()).await?;
    client.close().await;

    let score = Score::of(test, &found.classes, &plain);
    if args.json {
        let answers = found.classes.iter().zip(&plain).zip(test).map(|((class, plain), digit)| {
            json!({ "truth": digit.label, "private": class.index, "plain": best(plain), "scores": class.scores })
        });
        return say_json(&json!({
            "model": "digits", "profile": args.profile, "agreement": score.agreeing, "private_right": score.right,
            "plain_right": score.plain_right, "max_error": score.max_error, "cost": bill.json(),
            "answers": answers.collect::<Vec<_>>(),
        }));
    }
    if !args.test_split {
        say("a client asks what these are; no node sees them\n");
        let answered: Vec<_> = test.iter().zip(&found.classes).zip(&plain).collect();
        answered.chunks(A_ROW).for_each(draw);
    }
    say(score.line());
    say("");
    bill.say();
    say(glimpse::TITLE);
    glimpse::weight(&stage.model, &stage.shares)?;
    let first = test.first().context("no digit")?;
    let patches = stage.model.graph.input.patches(&first.pixels)?;
    let what = "the first digit (masked anew in every request)";
    glimpse::input(&stage.model, &stage.shares, Inputs::Images(&images[..1]), what, &glimpse::numbers(&patches))
}

/// Some digits, and under each what was answered.
fn draw(row: &[((&Digit, &Classification), &Vec<f32>)]) {
    let digits: Vec<Digit> = row.iter().map(|((digit, _), _)| (*digit).clone()).collect();
    say(digits::draw_row(&digits).trim_end_matches('\n'));
    let line = |cell: &dyn Fn(&Digit, &Classification, &[f32]) -> String| {
        let cells = row.iter().map(|((digit, class), plain)| format!("{:<16}", cell(digit, class, plain)));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    say(line(&|_, class, _| format!("private {} {:6.2}", class.label, class.scores[class.index])));
    say(line(&|_, _, plain| format!("plain   {} {:6.2}", best(plain), plain[best(plain)])));
    say(line(&|digit, class, _| {
        let right = if usize::from(digit.label) == class.index { "✓" } else { "✗" };
        format!("truth   {} {right}", digit.label)
    }));
    say("");
}

fn best(scores: &[f32]) -> usize {
    (1..scores.len()).fold(0, |best, at| if scores[at] > scores[best] { at } else { best })
}

/// How the private answers compare.
struct Score {
    all: usize,
    agreeing: usize,
    right: usize,
    plain_right: usize,
    max_error: f32,
}

impl Score {
    fn of(test: &[Digit], private: &[Classification], plain: &[Vec<f32>]) -> Self {
        let mut score = Self { all: test.len(), agreeing: 0, right: 0, plain_right: 0, max_error: 0.0 };
        for ((digit, class), plain) in test.iter().zip(private).zip(plain) {
            score.agreeing += usize::from(class.index == best(plain));
            score.right += usize::from(class.index == usize::from(digit.label));
            score.plain_right += usize::from(best(plain) == usize::from(digit.label));
            let errors = class.scores.iter().zip(plain).map(|(a, b)| (a - b).abs());
            score.max_error = errors.fold(score.max_error, f32::max);
        }
        score
    }

    fn line(&self) -> String {
        let percent = |count: usize| 100.0 * count as f64 / self.all.max(1) as f64;
        format!(
            "{} of {} answers are those of the plain model; right: private {:.1} %, plain {:.1} %; largest error of a score {:.4}",
            self.agreeing,
            self.all,
            percent(self.right),
            percent(self.plain_right),
            self.max_error
        )
    }
}
