//! GenEval (arXiv 2310.11513): its prompts, questions about what they include, and the results of its own scorer.
//!
//! The benchmark's own score needs an object detector. Beside it stands a score without one, after Soft-TIFA of GenEval 2:
//! the model is asked about every object, count, colour and place of a prompt, and the probability that it gives the right
//! choice counts: its mean over the questions, and its product.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::{Asked, Prompt};
use crate::files;

/// The colours that prompts name.
const COLOURS: [&str; 10] = ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"];
/// The places that prompts name, as answers.
const PLACES: [(&str, &str); 4] =
    [("left of", "left of it"), ("right of", "right of it"), ("above", "above it"), ("below", "below it")];

/// An object of a prompt.
#[derive(Debug, Deserialize)]
struct Object {
    class: String,
    #[serde(default = "one")]
    count: usize,
    color: Option<String>,
    /// Where it is, seen from another object of `include`.
    position: Option<(String, usize)>,
}

fn one() -> usize {
    1
}

#[derive(Debug, Deserialize)]
struct Metadata {
    tag: String,
    prompt: String,
    include: Vec<Object>,
    #[serde(default)]
    exclude: Vec<Object>,
}

/// The prompts of `evaluation_metadata.jsonl`, with questions about each.
///
/// # Errors
/// Names the line that is none of the benchmark's, and what it must hold.
pub fn read(path: &Path) -> Result<Vec<Prompt>> {
    let text = files::text(path)?;
    let mut prompts = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let place = || format!("{}, line {}", path.display(), number + 1);
        let remedy = "each line must be an object with `tag`, `prompt` and `include`, as in GenEval's \
                      evaluation_metadata.jsonl";
        let raw: Value = serde_json::from_str(line).with_context(place).context(remedy)?;
        let metadata: Metadata = serde_json::from_value(raw.clone()).with_context(place).context(remedy)?;
        let questions = questions(&metadata).with_context(place)?;
        prompts.push(Prompt {
            id: format!("{:05}", prompts.len()),
            text: metadata.prompt,
            category: metadata.tag,
            questions,
            metadata: Some(raw),
        });
    }
    ensure!(!prompts.is_empty(), "{}: holds no prompt; give GenEval's evaluation_metadata.jsonl", path.display());
    Ok(prompts)
}

/// What a picture of a prompt must answer.
fn questions(metadata: &Metadata) -> Result<Vec<Asked>> {
    let mut all = Vec::new();
    let yes_no = || ["yes", "no"].map(str::to_owned).to_vec();
    let ask = |kind: &str, question: String, choices: Vec<String>, answer: &str| Asked {
        question,
        choices,
        answer: answer.to_owned(),
        kind: kind.to_owned(),
        number: 0,
        parents: Vec::new(),
    };
    let counts = metadata.tag == "counting";
    for object in &metadata.include {
        let Object { class, count, color, position } = object;
        if counts || *count > 1 {
            let most = (*count + 1).max(4);
            let choices = (1..=most).map(|number| number.to_string()).collect();
            let question = format!("How many {} are in the picture?", plural(class));
            all.push(ask("count", question, choices, &count.to_string()));
        } else {
            all.push(ask("object", format!("Is there {} in the picture?", with_article(class)), yes_no(), "yes"));
        }
        if let Some(color) = color {
            ensure!(
                COLOURS.contains(&color.as_str()),
                "the colour {color:?} is none of GenEval's: {}",
                COLOURS.join(", ")
            );
            let choices = COLOURS.map(str::to_owned).to_vec();
            all.push(ask("color", format!("What color is the {class}?"), choices, color));
        }
        if let Some((place, other)) = position {
            let Some(other) = metadata.include.get(*other) else {
                bail!("`position` names object {other} of `include`, which has {}", metadata.include.len())
            };
            let Some((_, answer)) = PLACES.iter().find(|(known, _)| known == place) else {
                bail!("the position {place:?} is none of GenEval's: left of, right of, above, below")
            };
            let choices = PLACES.map(|(_, answer)| answer.to_owned()).to_vec();
            all.push(ask("position", format!("Where is the {class}, seen from the {}?", other.class), choices, answer));
        }
    }
    for object in &metadata.exclude {
        // The count of an object that was asked for excludes more of it already.
        if metadata.include.iter().any(|one| one.class == object.class) {
            continue;
        }
        let question = match object.count {
            0 | 1 => format!("Is there {} in the picture?", with_article(&object.class)),
            count => format!("Are there {count} or more {} in the picture?", plural(&object.class)),
        };
        all.push(ask("exclude", question, yes_no(), "no"));
    }
    ensure!(!all.is_empty(), "`include` is empty, so there is nothing to ask about the picture");
    Ok(all)
}

fn with_article(class: &str) -> String {
    let article = if class.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {class}")
}

/// The plural of a class of COCO's.
fn plural(class: &str) -> String {
    match class {
        "person" => "people".into(),
        "sheep" | "skis" | "scissors" | "broccoli" => class.into(),
        "knife" => "knives".into(),
        "mouse" | "computer mouse" => class.replace("mouse", "mice"),
        _ if ["s", "x", "ch", "sh"].iter().any(|end| class.ends_with(end)) => format!("{class}es"),
        _ => format!("{class}s"),
    }
}

/// Images of the benchmark's own scorer by task: of every prompt the share of its images that are right.
pub type ScorerResults = BTreeMap<String, BTreeMap<String, Vec<bool>>>;

/// Reads `results.jsonl`, which GenEval's `evaluate_images.py` writes: by task, by prompt, whether each image is right.
///
/// # Errors
/// Names the line that is none of the scorer's.
pub fn scorer_results(path: &Path) -> Result<ScorerResults> {
    #[derive(Deserialize)]
    struct Line {
        tag: String,
        prompt: String,
        correct: bool,
    }
    let mut all = ScorerResults::new();
    for (number, line) in files::text(path)?.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let line: Line = serde_json::from_str(line)
            .with_context(|| format!("{}, line {}", path.display(), number + 1))
            .context("each line must be an object with `tag`, `prompt` and `correct`, as GenEval's evaluate_images.py writes")?;
        all.entry(line.tag).or_default().entry(line.prompt).or_default().push(line.correct);
    }
    ensure!(
        !all.is_empty(),
        "{}: holds no result; give the results.jsonl of GenEval's evaluate_images.py",
        path.display()
    );
    Ok(all)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read_text(text: &str) -> Result<Vec<Prompt>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("evaluation_metadata.jsonl");
        std::fs::write(&path, text)?;
        read(&path)
    }

    #[test]
    fn questions_follow_from_what_a_prompt_includes() {
        let text = concat!(
            "{\"tag\": \"counting\", \"include\": [{\"class\": \"bench\", \"count\": 3}], \"exclude\": [{\"class\": \"bench\", \"count\": 4}], \"prompt\": \"a photo of three benches\"}\n",
            "{\"tag\": \"color_attr\", \"include\": [{\"class\": \"cup\", \"count\": 1, \"color\": \"red\"}, {\"class\": \"oven\", \"count\": 1, \"color\": \"blue\"}], \"prompt\": \"p\"}\n\n",
            "{\"tag\": \"position\", \"include\": [{\"class\": \"dog\", \"count\": 1}, {\"class\": \"tie\", \"count\": 1, \"position\": [\"right of\", 0]}], \"prompt\": \"p\"}\n",
        );
        let prompts = read_text(text).unwrap();
        let asked: Vec<Vec<(&str, &str)>> = prompts
            .iter()
            .map(|prompt| prompt.questions.iter().map(|one| (one.question.as_str(), one.answer.as_str())).collect())
            .collect();
        assert_eq!(asked[0], [("How many benches are in the picture?", "3")]);
        assert_eq!(prompts[0].questions[0].choices, ["1", "2", "3", "4"]);
        assert_eq!(
            asked[1],
            [
                ("Is there a cup in the picture?", "yes"),
                ("What color is the cup?", "red"),
                ("Is there an oven in the picture?", "yes"),
                ("What color is the oven?", "blue"),
            ]
        );
        assert_eq!(asked[2][2], ("Where is the tie, seen from the dog?", "right of it"));
        assert_eq!(prompts[2].id, "00002");
    }

    #[test]
    fn a_wrong_line_is_named_with_what_it_must_be() {
        let said = |text: &str| format!("{:#}", read_text(text).unwrap_err());
        let good = "{\"tag\": \"t\", \"include\": [{\"class\": \"dog\"}], \"prompt\": \"p\"}\n";
        for (bad, part) in [
            ("{\"tag\": \"t\"}", "line 2"),
            ("not json", "line 2"),
            ("{\"tag\": \"t\", \"include\": [], \"prompt\": \"p\"}", "nothing to ask"),
            ("{\"tag\": \"t\", \"include\": [{\"class\": \"dog\", \"color\": \"mauve\"}], \"prompt\": \"p\"}", "mauve"),
            (
                "{\"tag\": \"t\", \"include\": [{\"class\": \"dog\", \"position\": [\"above\", 7]}], \"prompt\": \"p\"}",
                "object 7",
            ),
        ] {
            let message = said(&format!("{good}{bad}\n"));
            assert!(message.contains(part) && message.contains("line 2"), "{message}");
        }
        assert!(said("\n").contains("holds no prompt"));
    }
}
