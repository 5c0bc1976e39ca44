//! A judge that is loaded only when it is asked something new: answers that it gave before are read from disk.

use std::cell::{OnceCell, RefCell};
use std::collections::HashSet;

use anyhow::Result;
use hermesflow_score::{
    CaptionAnswer, CaptionSimilarity, ChoiceMatcher, Choosing, Error, Question, QuestionFilter, QuestionWriter,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cache::scores::ScoreCache;
use crate::digest::digest;

/// A judge of the type `J` with its stored answers; its model is loaded when first needed.
pub struct Remembered<J> {
    name: &'static str,
    cache: Option<RefCell<ScoreCache>>,
    load: Box<dyn Fn() -> Result<J>>,
    judge: OnceCell<J>,
}

impl<J> Remembered<J> {
    /// A judge that `load` loads when it is needed, with the answers in `cache`; `name` appears in messages.
    pub fn new(name: &'static str, cache: Option<ScoreCache>, load: impl Fn() -> Result<J> + 'static) -> Self {
        Self { name, cache: cache.map(RefCell::new), load: Box::new(load), judge: OnceCell::new() }
    }

    fn judge(&self) -> hermesflow_score::Result<&J> {
        if let Some(judge) = self.judge.get() {
            return Ok(judge);
        }
        let loaded = (self.load)().map_err(|error| self.error(&error))?;
        Ok(self.judge.get_or_init(|| loaded))
    }

    fn error(&self, error: &anyhow::Error) -> Error {
        Error::Judge { judge: self.name, message: format!("{error:#}") }
    }

    /// The answers under `keys`: the stored ones, and for the other keys those that `ask` gets from the judge, given
    /// their indices.
    fn values<T: Serialize + DeserializeOwned + Clone>(
        &self,
        keys: &[String],
        ask: impl FnOnce(&J, &[usize]) -> hermesflow_score::Result<Vec<T>>,
    ) -> hermesflow_score::Result<Vec<T>> {
        let known = |key: &String| self.cache.as_ref().and_then(|cache| cache.borrow_mut().get::<T>(key));
        let mut values: Vec<Option<T>> = keys.iter().map(known).collect();
        let mut seen = HashSet::new();
        let new: Vec<usize> = (0..keys.len()).filter(|&at| values[at].is_none() && seen.insert(&keys[at])).collect();
        if !new.is_empty() {
            let said = ask(self.judge()?, &new)?;
            let entries: Vec<(String, T)> = new.iter().map(|&at| keys[at].clone()).zip(said).collect();
            if let Some(cache) = &self.cache {
                cache.borrow_mut().put(&entries).map_err(|error| self.error(&error))?;
            }
            for (at, value) in values.iter_mut().enumerate().filter(|(_, value)| value.is_none()) {
                *value = entries.iter().find(|(key, _)| *key == keys[at]).map(|(_, value)| value.clone());
            }
        }
        let missing = || Error::Judge { judge: self.name, message: "it returned fewer results than inputs".into() };
        values.into_iter().map(|value| value.ok_or_else(missing)).collect()
    }
}

impl<J: CaptionSimilarity> CaptionSimilarity for Remembered<J> {
    fn similarities(&self, reference: &str, candidates: &[String]) -> hermesflow_score::Result<Vec<f64>> {
        let keys: Vec<String> = candidates.iter().map(|candidate| digest([reference, candidate])).collect();
        self.values(&keys, |judge, new| {
            let candidates: Vec<String> = new.iter().map(|&at| candidates[at].clone()).collect();
            judge.similarities(reference, &candidates)
        })
    }
}

impl<J: ChoiceMatcher> ChoiceMatcher for Remembered<J> {
    fn choose(&self, replies: &[Choosing<'_>]) -> hermesflow_score::Result<Vec<Option<usize>>> {
        let key = |one: &Choosing<'_>| digest([one.reply].into_iter().chain(one.choices.iter().map(String::as_str)));
        let keys: Vec<String> = replies.iter().map(key).collect();
        // As numbers, because a stored `None` could not be told from an answer that is not stored.
        let meant = self.values(&keys, |judge, new| {
            let asked: Vec<Choosing<'_>> = new.iter().map(|&at| replies[at]).collect();
            Ok(judge.choose(&asked)?.into_iter().map(|meant| meant.map_or(-1, |at| at as i64)).collect())
        })?;
        Ok(meant.into_iter().map(|at: i64| usize::try_from(at).ok()).collect())
    }
}

impl<J: QuestionWriter> QuestionWriter for Remembered<J> {
    fn write(&self, captions: &[&str]) -> hermesflow_score::Result<Vec<Vec<Question>>> {
        let keys: Vec<String> = captions.iter().map(|caption| digest([*caption])).collect();
        self.values(&keys, |judge, new| judge.write(&new.iter().map(|&at| captions[at]).collect::<Vec<_>>()))
    }
}

impl<J: QuestionFilter> QuestionFilter for Remembered<J> {
    fn answers(&self, caption: &str, questions: &[Question]) -> hermesflow_score::Result<Vec<CaptionAnswer>> {
        let keys: Vec<String> = questions.iter().map(|question| key(caption, std::slice::from_ref(question))).collect();
        self.values(&keys, |judge, new| {
            judge.answers(caption, &new.iter().map(|&at| questions[at].clone()).collect::<Vec<_>>())
        })
    }

    fn keep(&self, caption: &str, questions: Vec<Question>) -> hermesflow_score::Result<Vec<Question>> {
        let kept =
            self.values(&[key(caption, &questions)], |judge, _| Ok(vec![judge.keep(caption, questions.clone())?]))?;
        Ok(kept.into_iter().flatten().collect())
    }
}

fn key(caption: &str, questions: &[Question]) -> String {
    let parts = questions.iter().flat_map(|question| {
        let named = [&question.element, &question.question, &question.answer];
        named.into_iter().chain(&question.choices).map(String::as_str)
    });
    digest([caption].into_iter().chain(parts))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::rc::Rc;

    use super::*;
    use crate::run::sharing::Sharing;

    /// Counts how many texts it is asked about.
    struct Counting(Rc<RefCell<Vec<usize>>>);

    impl CaptionSimilarity for Counting {
        fn similarities(&self, reference: &str, candidates: &[String]) -> hermesflow_score::Result<Vec<f64>> {
            self.0.borrow_mut().push(candidates.len());
            Ok(candidates.iter().map(|candidate| (candidate.len() as f64 - reference.len() as f64) / 3.0).collect())
        }
    }

    impl ChoiceMatcher for Counting {
        fn choose(&self, replies: &[Choosing<'_>]) -> hermesflow_score::Result<Vec<Option<usize>>> {
            self.0.borrow_mut().push(replies.len());
            Ok(replies.iter().map(|one| one.choices.iter().position(|choice| choice == one.reply)).collect())
        }
    }

    #[test]
    fn only_what_is_new_is_asked_and_nothing_loads_a_model_twice() {
        let folder = tempfile::tempdir().unwrap();
        let (asked, loads) = (Rc::new(RefCell::new(Vec::new())), Rc::new(RefCell::new(0)));
        let judge = || {
            let (asked, loads) = (asked.clone(), loads.clone());
            let cache = ScoreCache::open(&folder.path().join("scores.jsonl"), &Sharing::default()).unwrap();
            Remembered::new("counting", Some(cache), move || {
                *loads.borrow_mut() += 1;
                Ok(Counting(asked.clone()))
            })
        };
        let texts = ["ab", "abcd", "ab"].map(String::from);
        let first = judge();
        let scores = first.similarities("abc", &texts).unwrap();
        assert_eq!(scores, [-1.0 / 3.0, 1.0 / 3.0, -1.0 / 3.0]);
        assert_eq!(first.similarities("abc", &[texts.to_vec(), vec!["x".into()]].concat()).unwrap()[3], -2.0 / 3.0);
        assert_eq!((asked.borrow().as_slice(), *loads.borrow()), ([2, 1].as_slice(), 1));
        assert_eq!(judge().similarities("abc", &texts).unwrap(), scores, "the very same numbers from the disk");
        assert_eq!(*loads.borrow(), 1, "nothing new: no model is loaded");
        let choices = ["yes", "no"].map(String::from);
        let replies = [Choosing { reply: "no", choices: &choices }, Choosing { reply: "perhaps", choices: &choices }];
        assert_eq!(judge().choose(&replies).unwrap(), [Some(1), None]);
        assert_eq!(judge().choose(&replies).unwrap(), [Some(1), None], "none of them is an answer, too");
        assert_eq!((asked.borrow().len(), *loads.borrow()), (3, 2));
    }

    #[test]
    fn a_model_that_cannot_be_loaded_is_named() {
        let judge: Remembered<Counting> = Remembered::new("bert", None, || anyhow::bail!("model.safetensors: cut off"));
        let said = judge.similarities("a", &["b".to_string()]).unwrap_err().to_string();
        assert!(said.contains("bert") && said.contains("model.safetensors: cut off"), "{said}");
        assert_eq!(judge.similarities("a", &[]).unwrap(), Vec::<f64>::new());
    }
}
