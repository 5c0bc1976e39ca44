//! TIFA (arXiv 2303.11897): its file of questions and answers, `tifa_v1.0_question_answers.json`.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::{Asked, Prompt};

#[derive(Debug, Deserialize)]
struct Entry {
    id: String,
    caption: String,
    question: String,
    choices: Vec<String>,
    answer: String,
    #[serde(default)]
    element_type: String,
}

/// The prompts of TIFA's question file; entries of one id are one prompt.
///
/// # Errors
/// Names the line and the entry that is none of the benchmark's.
pub fn read(path: &Path) -> Result<Vec<Prompt>> {
    let remedy =
        "give TIFA's question file, a list of entries with `id`, `caption`, `question`, `choices` and `answer`";
    let entries: Vec<Entry> = hermesflow_records::read(path, "give TIFA's question file").context(remedy)?;
    let mut prompts: Vec<Prompt> = Vec::new();
    for Entry { id, caption, question, choices, answer, element_type } in entries {
        let named = || format!("{}: the question {question:?} of {id}", path.display());
        ensure!(choices.contains(&answer), "{}: the answer {answer:?} is none of its choices; {remedy}", named());
        ensure!(choices.len() > 1, "{}: there are fewer than two choices; {remedy}", named());
        let at = match prompts.iter().rposition(|prompt| prompt.id == id) {
            Some(at) => at,
            None => {
                let (text, category) = (caption.clone(), source(&id));
                prompts.push(Prompt { id, text, category, questions: Vec::new(), metadata: None });
                prompts.len() - 1
            }
        };
        let number = prompts[at].questions.len() + 1;
        let kind = if element_type.is_empty() { "other".into() } else { element_type };
        prompts[at].questions.push(Asked { question, choices, answer, kind, number, parents: Vec::new() });
    }
    ensure!(!prompts.is_empty(), "{}: holds no question; {remedy}", path.display());
    Ok(prompts)
}

/// The collection that a prompt is from, which its id begins with: coco, drawbench, partiprompt, paintskill.
fn source(id: &str) -> String {
    id.split('_').next().unwrap_or(id).to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn entries_of_one_id_are_one_prompt_and_wrong_ones_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("q.json");
        let entry = |id: &str, answer: &str| {
            format!(
                "{{\"id\": \"{id}\", \"caption\": \"a dog\", \"question\": \"is it a dog?\", \"choices\": [\"yes\", \"no\"], \"answer\": \"{answer}\", \"element_type\": \"object\"}}"
            )
        };
        let write = |entries: &[String]| std::fs::write(&path, format!("[{}]", entries.join(",\n"))).unwrap();
        write(&[entry("coco_1", "yes"), entry("coco_1", "no"), entry("drawbench_2", "yes")]);
        let prompts = read(&path).unwrap();
        assert_eq!((prompts.len(), prompts[0].questions.len(), prompts[1].category.as_str()), (2, 2, "drawbench"));
        write(&[entry("coco_1", "yes"), entry("coco_1", "maybe")]);
        let said = read(&path).unwrap_err().to_string();
        assert!(said.contains("\"maybe\" is none of its choices") && said.contains("coco_1"), "{said}");
        write(&[entry("coco_1", "yes"), "{\"id\": \"x\"}".into()]);
        let said = format!("{:#}", read(&path).unwrap_err());
        assert!(said.contains("line 2") && said.contains("TIFA's question file"), "{said}");
    }
}
