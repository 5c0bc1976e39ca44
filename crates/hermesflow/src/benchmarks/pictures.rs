//! Benchmarks of understanding: pictures, questions about them, and what a model answers.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use csv::Position;
use hermesflow_models::preprocess;
use hermesflow_models::{GivenReply, ImageView, ReplyRequest, Sampling, UnifiedModel};
use image::RgbImage;
use serde::Deserialize;

use super::tables::{self, Table};
use super::{Benchmark, Row, yes_no};
use crate::digest::digest;
use crate::files;

/// A question about a picture.
#[derive(Debug, Clone)]
pub struct Item {
    /// The name in the user's file.
    pub id: String,
    /// The group that it belongs to.
    pub category: String,
    /// What is drawn anew for intervals: the picture for pairs of questions about one, else the question.
    pub unit: String,
    picture: Picture,
    question: String,
    /// The options of a multiple choice, without their letters; empty for yes and no.
    options: Vec<String>,
    /// The number of the right option; for yes and no, 1 is yes.
    answer: usize,
}

#[derive(Debug, Clone)]
enum Picture {
    File(PathBuf),
    /// In the cell `image` of the row at this position.
    Cell(Position),
}

/// The items of a benchmark, and the file that holds their pictures.
pub struct Items {
    /// The items in the order of the file.
    pub all: Vec<Item>,
    table: Option<Mutex<Table>>,
    column: usize,
}

/// The questions of POPE's JSON Lines, one file per setting, about pictures of a folder.
///
/// # Errors
/// Names the line that is none of the benchmark's, or the picture that is not there.
pub fn pope(paths: &[PathBuf], pictures: &Path) -> Result<Items> {
    #[derive(Deserialize)]
    struct Line {
        #[serde(default)]
        question_id: Option<serde_json::Value>,
        image: String,
        text: String,
        label: String,
    }
    let mut all = Vec::new();
    for path in paths {
        let category = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        for (number, line) in files::text(path)?.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let place = format!("{}, line {}", path.display(), number + 1);
            let line: Line = serde_json::from_str(line).with_context(|| {
                format!("{place}: each line must be an object with `image`, `text` and `label`, as in POPE's files")
            })?;
            let answer = match line.label.as_str() {
                "yes" => 1,
                "no" => 0,
                other => anyhow::bail!("{place}: the label {other:?} is neither yes nor no; give POPE's own file"),
            };
            let file = pictures.join(&line.image);
            ensure!(
                file.is_file(),
                "{place}: the picture {} is not there; --images is the folder of COCO's val2014",
                file.display()
            );
            let id = line.question_id.map_or_else(|| (number + 1).to_string(), |id| id.to_string().replace('"', ""));
            let (picture, question) = (Picture::File(file), line.text);
            let unit = format!("{category} {id}");
            all.push(Item { id, category: category.clone(), unit, picture, question, options: vec![], answer });
        }
    }
    ensure!(!all.is_empty(), "--data: the files hold no question; give POPE's JSON Lines");
    Ok(Items { all, table: None, column: 0 })
}

/// The questions of a TSV in VLMEvalKit's form: of MME with yes and no, else multiple choice.
///
/// # Errors
/// Names the line and the column that is missing or wrong.
pub fn tsv(path: &Path, benchmark: Benchmark) -> Result<Items> {
    let remedy = match benchmark {
        Benchmark::Mme => "give VLMEvalKit's MME.tsv",
        _ => "give a TSV of VLMEvalKit with the columns A, B, … and `answer`, such as MMBench_DEV_EN.tsv",
    };
    let mut table = Table::open(path, b'\t', remedy)?;
    let [index, image, question, answer] = table.columns(&["index", "image", "question", "answer"])?;
    let category = table.column("category");
    let (hint, of_picture) = (table.column("hint"), table.column("image_path"));
    let letters: Vec<usize> = ('A'..='Z').map_while(|letter| table.column(&letter.to_string())).collect();
    let multiple = benchmark != Benchmark::Mme;
    ensure!(!multiple || letters.len() >= 2, "{}: has no columns A and B; {remedy}", path.display());
    let (mut all, mut places) = (Vec::new(), HashMap::new());
    while let Some(row) = table.next()? {
        let id = row.cell(index).trim().to_owned();
        let cell = row.cell(image);
        // A short cell names the row that holds the picture.
        let position = match cell.len() < 64 {
            true => places.get(cell.trim()).cloned().with_context(|| {
                format!(
                    "{}: the cell `image` is no picture, and no earlier row has the index {:?}; {remedy}",
                    row.place(),
                    cell.trim()
                )
            })?,
            false => row.position.clone(),
        };
        let unit = match of_picture.map(|at| row.cell(at)).filter(|path| !path.is_empty()) {
            Some(path) => path.to_owned(),
            None => digest([position.byte().to_le_bytes()]),
        };
        places.insert(id.clone(), position.clone());
        let options: Vec<String> =
            letters.iter().map(|at| row.cell(*at).trim().to_owned()).take_while(|text| !text.is_empty()).collect();
        let said = row.cell(answer).trim();
        let answer = if multiple {
            let letter = said.chars().next().filter(|letter| said.len() == 1 && letter.is_ascii_uppercase());
            let number = letter.map(|letter| letter as usize - 'A' as usize).filter(|number| *number < options.len());
            number.with_context(|| {
                format!(
                    "{}: the answer {said:?} is the letter of none of its {} options; {remedy}",
                    row.place(),
                    options.len()
                )
            })?
        } else {
            match said.to_lowercase().as_str() {
                "yes" => 1,
                "no" => 0,
                _ => anyhow::bail!("{}: the answer {said:?} is neither Yes nor No; {remedy}", row.place()),
            }
        };
        let hint = hint.map(|at| row.cell(at).trim()).filter(|hint| !hint.is_empty() && *hint != "nan");
        let question = hint.into_iter().chain([row.cell(question).trim()]).collect::<Vec<_>>().join("\n");
        let category = category.map_or("all", |at| row.cell(at)).to_owned();
        let options = if multiple { options } else { Vec::new() };
        let unit = if multiple { id.clone() } else { format!("{category} {unit}") };
        all.push(Item { id, category, unit, picture: Picture::Cell(position), question, options, answer });
    }
    ensure!(!all.is_empty(), "{}: holds no question; {remedy}", path.display());
    Ok(Items { all, table: Some(Mutex::new(table)), column: image })
}

impl Items {
    /// The picture of an item.
    ///
    /// # Errors
    /// Names the file, or the line of the cell, that is no picture.
    pub fn picture(&self, item: &Item) -> Result<RgbImage> {
        match (&item.picture, &self.table) {
            (Picture::Cell(position), Some(table)) => {
                let row = table.lock().unwrap_or_else(PoisonError::into_inner).at(position)?;
                tables::picture(row.cell(self.column), &row.place())
            }
            (Picture::File(file), _) => Ok(preprocess::open(file)?.to_rgb8()),
            (Picture::Cell(_), None) => anyhow::bail!("{}: its picture is in no file", item.id),
        }
    }

    /// The picture files that items name.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.all.iter().filter_map(|item| match &item.picture {
            Picture::File(file) => Some(file.as_path()),
            Picture::Cell(_) => None,
        })
    }
}

/// What answers the questions of a benchmark.
pub struct Reader<'a, M> {
    /// Which benchmark.
    pub benchmark: Benchmark,
    /// The model.
    pub model: &'a M,
    /// Longest reply, in tokens.
    pub max_new_tokens: usize,
}

impl<M: UnifiedModel> Reader<'_, M> {
    /// Answers the questions of some items, as one batch. Questions that are too long for the model are answered wrongly.
    ///
    /// # Errors
    /// When a picture cannot be read, or the model fails.
    pub fn rows(&self, items: &Items, chosen: &[Item]) -> Result<Vec<Row>> {
        let prepare = |item: &Item| -> Result<_> {
            let picture = items.picture(item).with_context(|| format!("item {}", item.id))?;
            Ok(self.model.prepare(picture)?)
        };
        let prepared = chosen.iter().map(prepare).collect::<Result<Vec<_>>>()?;
        let views = self.model.understand(&prepared)?;
        if self.benchmark == Benchmark::Vqa {
            self.by_likelihood(chosen, &views)
        } else {
            self.by_replies(chosen, &views)
        }
    }

    fn fits(&self, item: &Item) -> bool {
        let longest = item.options.iter().map(|option| option.len()).max().unwrap_or(0);
        self.model.check_question(&item.question, self.max_new_tokens.max(longest)).is_ok()
    }

    fn by_replies(&self, chosen: &[Item], views: &[ImageView]) -> Result<Vec<Row>> {
        let request = |item: &Item| ReplyRequest {
            question: item.question.clone(),
            sampling: Sampling::GREEDY,
            seed: 0,
            max_new_tokens: self.max_new_tokens,
        };
        let requests: Vec<Vec<ReplyRequest>> =
            chosen.iter().map(|item| if self.fits(item) { vec![request(item)] } else { vec![] }).collect();
        let asked: Vec<(&ImageView, &[ReplyRequest])> = views.iter().zip(requests.iter().map(Vec::as_slice)).collect();
        let replies = self.model.reply_many(&asked)?;
        let row = |(item, replies): (&Item, Vec<hermesflow_models::Reply>)| {
            let said = replies.into_iter().next().map(|reply| reply.text.trim().to_owned());
            let yes = match self.benchmark {
                Benchmark::Pope => said.as_deref().map(yes_no::pope),
                _ => said.as_deref().and_then(yes_no::mme),
            };
            let right = yes == Some(item.answer == 1);
            let scores = [
                ("right", right),
                ("said yes", yes == Some(true)),
                ("is yes", item.answer == 1),
                ("too long", said.is_none()),
            ];
            self.row(item, &scores, said.into_iter().collect())
        };
        Ok(chosen.iter().zip(replies).map(row).collect())
    }

    /// By the likelihood of each option as a reply, per token: options are of different lengths.
    fn by_likelihood(&self, chosen: &[Item], views: &[ImageView]) -> Result<Vec<Row>> {
        let given = |item: &Item| -> Vec<GivenReply> {
            let fits = self.fits(item);
            let options = item.options.iter().filter(|_| fits);
            options.map(|option| GivenReply { question: item.question.clone(), reply: option.clone() }).collect()
        };
        let given: Vec<Vec<GivenReply>> = chosen.iter().map(given).collect();
        let asked: Vec<(&ImageView, &[GivenReply])> = views.iter().zip(given.iter().map(Vec::as_slice)).collect();
        let row = |(item, found): (&Item, Vec<hermesflow_models::Likelihood>)| {
            let per_token: Vec<f64> = found.iter().map(|one| one.log_prob / one.tokens.max(1) as f64).collect();
            let best = likeliest(&per_token);
            let said = best.map(|best| item.options[best].clone());
            self.row(
                item,
                &[("right", best == Some(item.answer)), ("too long", best.is_none())],
                said.into_iter().collect(),
            )
        };
        Ok(chosen.iter().zip(self.model.score_replies(&asked)?).map(row).collect())
    }

    fn row(&self, item: &Item, scores: &[(&str, bool)], said: Vec<String>) -> Row {
        let number = |(name, holds): &(&str, bool)| ((*name).to_owned(), f64::from(u8::from(*holds)));
        Row {
            item: item.id.clone(),
            category: item.category.clone(),
            unit: item.unit.clone(),
            guidance: None,
            scores: scores.iter().map(number).collect::<BTreeMap<_, _>>(),
            said,
        }
    }
}

/// The number of the highest, the first of equal ones; none of none.
fn likeliest(numbers: &[f64]) -> Option<usize> {
    let better = |best: Option<usize>, at: usize| match best {
        Some(best) if numbers[at] <= numbers[best] => Some(best),
        _ => Some(at),
    };
    (0..numbers.len()).fold(None, better)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const B64: &str =
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

    fn of(text: &str, benchmark: Benchmark) -> Result<Items> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("t.tsv");
        std::fs::write(&path, text)?;
        tsv(&path, benchmark)
    }

    #[test]
    fn rows_that_name_another_rows_picture_share_it() {
        let text = format!(
            "index\timage\tquestion\tanswer\tcategory\n0\t{B64}\t\"Is it\ta dog?\"\tYes\tcolor\n1\t0\tIs it a cat?\tNo\tcolor\n"
        );
        let items = of(&text, Benchmark::Mme).unwrap();
        assert_eq!((items.all.len(), items.all[0].answer, items.all[1].answer), (2, 1, 0));
        assert_eq!(items.all[0].unit, items.all[1].unit, "one picture");
        assert_eq!(items.all[0].question, "Is it\ta dog?");
        assert_eq!(items.picture(&items.all[1]).unwrap().dimensions(), (1, 1));
    }

    #[test]
    fn options_are_those_that_are_there() {
        let text =
            format!("index\tquestion\thint\tA\tB\tC\tD\tanswer\timage\n7\tWhich?\tLook.\tone\ttwo\t\t\tB\t{B64}\n");
        let items = of(&text, Benchmark::Vqa).unwrap();
        assert_eq!((items.all[0].options.len(), items.all[0].answer), (2, 1));
        assert_eq!(items.all[0].question, "Look.\nWhich?");
        assert_eq!(likeliest(&[-2.0, -1.0, -1.0]), Some(1));
    }

    #[test]
    fn wrong_tables_are_named_by_line_with_the_file_to_give() {
        let said = |text: &str, benchmark| format!("{:#}", of(text, benchmark).err().unwrap());
        let head = "index\timage\tquestion\tanswer\n";
        let message = said(&format!("{head}0\t{B64}\tq\tmaybe\n"), Benchmark::Mme);
        assert!(
            message.contains("line 2") && message.contains("neither Yes nor No") && message.contains("MME.tsv"),
            "{message}"
        );
        assert!(said(&format!("{head}0\t5\tq\tYes\n"), Benchmark::Mme).contains("no earlier row has the index \"5\""));
        assert!(said("index\tquestion\n", Benchmark::Mme).contains("has no column image"));
        assert!(said(&format!("{head}0\t{B64}\tq\tA\n"), Benchmark::Vqa).contains("no columns A and B"));
        assert!(said(&format!("{head}0\tx\n"), Benchmark::Mme).contains("line 2: has 2 cells"));
        let text = format!("index\tquestion\tA\tB\tanswer\timage\n7\tWhich?\tone\ttwo\tC\t{B64}\n");
        assert!(said(&text, Benchmark::Vqa).contains("the letter of none of its 2 options"));
    }
}
