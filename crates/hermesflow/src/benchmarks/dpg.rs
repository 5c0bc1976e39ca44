//! DPG-Bench (arXiv 2403.05135): its file of questions, `dpg_bench.csv`, and its rule that a question counts only if those
//! that it depends on hold.
//!
//! One deviation: the published script leaves out the first row of the file, which is a question like any other; here it
//! counts.

use std::path::Path;

use anyhow::{Result, ensure};

use super::tables::Table;
use super::{Asked, Prompt};

const REMEDY: &str = "give DPG-Bench's dpg_bench.csv";

/// The prompts of the file; rows of one `item_id` are one prompt.
///
/// # Errors
/// Names the line and the column that is missing or wrong.
pub fn read(path: &Path) -> Result<Vec<Prompt>> {
    let mut table = Table::open(path, b',', REMEDY)?;
    let columns = ["item_id", "text", "proposition_id", "dependency", "category_broad", "question_natural_language"];
    let columns = table.columns(&columns)?;
    let mut prompts: Vec<Prompt> = Vec::new();
    while let Some(row) = table.next()? {
        let [id, text, number, dependency, kind, question] = columns.map(|at| row.cell(at).trim().to_owned());
        let wrong = |what: &str, value: &str| format!("{}: {what} {value:?} is not a number; {REMEDY}", row.place());
        let Ok(number) = number.parse::<usize>() else { anyhow::bail!(wrong("proposition_id", &number)) };
        let mut parents = Vec::new();
        for parent in dependency.split(',').map(str::trim).filter(|parent| !parent.is_empty()) {
            let Ok(parent) = parent.parse::<usize>() else { anyhow::bail!(wrong("dependency", &dependency)) };
            parents.extend((parent > 0).then_some(parent));
        }
        ensure!(!question.is_empty(), "{}: question_natural_language is empty; {REMEDY}", row.place());
        let at = match prompts.iter().rposition(|prompt| prompt.id == id) {
            Some(at) => at,
            None => {
                prompts.push(Prompt {
                    id,
                    text: String::new(),
                    category: "all".into(),
                    questions: vec![],
                    metadata: None,
                });
                prompts.len() - 1
            }
        };
        let prompt = &mut prompts[at];
        if prompt.text.is_empty() {
            prompt.text = text;
        }
        ensure!(
            prompt.questions.iter().all(|asked| asked.number != number),
            "{}: proposition_id {number} of {} occurs twice; {REMEDY}",
            row.place(),
            prompt.id
        );
        let choices = ["yes", "no"].map(str::to_owned).to_vec();
        prompt.questions.push(Asked { question, choices, answer: "yes".into(), kind, number, parents });
    }
    ensure!(!prompts.is_empty(), "{}: holds no question; {REMEDY}", path.display());
    for prompt in &prompts {
        ensure!(!prompt.text.is_empty(), "{}: {} has no text; {REMEDY}", path.display(), prompt.id);
        let known = |number: &usize| prompt.questions.iter().any(|asked| asked.number == *number);
        let missing = prompt.questions.iter().flat_map(|asked| &asked.parents).find(|number| !known(number));
        ensure!(
            missing.is_none(),
            "{}: a question of {} depends on proposition {}, which it does not have; {REMEDY}",
            path.display(),
            prompt.id,
            missing.copied().unwrap_or_default()
        );
    }
    Ok(prompts)
}

/// Which answers count: those that are right and whose parents all count.
pub fn counted(questions: &[Asked], right: &[bool]) -> Vec<bool> {
    let at = |number: usize| questions.iter().position(|asked| asked.number == number);
    // As many rounds as a chain can be long; a circle would never hold, and ends.
    let mut counts = right.to_vec();
    for _ in 0..questions.len() {
        for (own, asked) in questions.iter().enumerate() {
            let holds = asked.parents.iter().all(|&parent| at(parent).is_none_or(|parent| counts[parent]));
            counts[own] &= holds;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HEAD: &str = "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language\n";

    fn read_text(rows: &str) -> Result<Vec<Prompt>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("dpg.csv");
        std::fs::write(&path, format!("{HEAD}{rows}"))?;
        read(&path)
    }

    #[test]
    fn the_first_row_counts_and_children_only_with_their_parents() {
        let prompts = read_text(
            "a,\"A red dog, asleep\",k,1,0,entity,e,t,Is there a dog?\n\
             a,\"A red dog, asleep\",k,2,1,attribute,c,t,Is the dog red?\n\
             a,,k,3,\"1,2\",relation,r,t,Is the red dog asleep?\n\
             b,x,k,1,0,entity,e,t,Is there an x?\n",
        )
        .unwrap();
        assert_eq!((prompts.len(), prompts[0].text.as_str()), (2, "A red dog, asleep"));
        assert_eq!(prompts[0].questions[2].parents, [1, 2]);
        let questions = &prompts[0].questions;
        assert_eq!(counted(questions, &[true, true, true]), [true, true, true]);
        assert_eq!(counted(questions, &[true, false, true]), [true, false, false]);
        assert_eq!(counted(questions, &[false, true, true]), [false, false, false], "the grandchild too");
    }

    #[test]
    fn wrong_rows_are_named_by_line() {
        let said = |rows: &str| format!("{:#}", read_text(rows).unwrap_err());
        assert!(said("a,t,k,one,0,e,e,t,q\n").contains("line 2: proposition_id \"one\" is not a number"));
        let message = said("a,t,k,1,0,e,e,t,q\na,t,k,2,x,e,e,t,q\n");
        assert!(message.contains("line 3") && message.contains("dependency"), "{message}");
        assert!(said("a,t,k,1,7,e,e,t,q\n").contains("depends on proposition 7"));
        assert!(said("").contains("holds no question"));
        assert!(said("a,t\n").contains("line 2"));
    }
}
