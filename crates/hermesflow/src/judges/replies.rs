//! Replies to multiple-choice questions: which choice they mean, and whether it is the right one.

use anyhow::Result;
use hermesflow_score::choice::equal;
use hermesflow_score::{ChoiceMatcher, Choosing};

/// A reply to a multiple-choice question, with the choices and the right answer.
#[derive(Debug, Clone, Copy)]
pub struct Answered<'a> {
    /// The reply, in the model's own words.
    pub reply: &'a str,
    /// The answers to choose from.
    pub choices: &'a [String],
    /// The right answer, which is one of the choices.
    pub answer: &'a str,
}

/// For each reply, the index of the choice that it means, or `None`. A reply that equals a choice means that choice;
/// `matcher` decides only the others.
///
/// # Errors
/// If the matcher fails.
pub fn meant(matcher: &dyn ChoiceMatcher, replies: &[Choosing<'_>]) -> Result<Vec<Option<usize>>> {
    let said: Vec<Option<usize>> = replies.iter().map(|one| equal(one.reply, one.choices)).collect();
    let others: Vec<_> = replies.iter().zip(&said).filter_map(|(one, said)| said.is_none().then_some(*one)).collect();
    let judged = if others.is_empty() { Vec::new() } else { matcher.choose(&others)? };
    let mut judged = judged.into_iter();
    Ok(said.into_iter().map(|said| said.or_else(|| judged.next().flatten())).collect())
}

/// For each reply, whether it means the right answer.
///
/// # Errors
/// If the matcher fails.
pub fn right(matcher: &dyn ChoiceMatcher, answered: &[Answered<'_>]) -> Result<Vec<bool>> {
    let replies: Vec<_> = answered.iter().map(|Answered { reply, choices, .. }| Choosing { reply, choices }).collect();
    let meant = meant(matcher, &replies)?;
    let is_right = |(one, meant): (&Answered<'_>, Option<usize>)| meant.is_some_and(|at| one.choices[at] == one.answer);
    Ok(answered.iter().zip(meant).map(is_right).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Means the first choice, whatever is replied.
    struct First;

    impl ChoiceMatcher for First {
        fn choose(&self, replies: &[Choosing<'_>]) -> hermesflow_score::Result<Vec<Option<usize>>> {
            Ok(vec![Some(0); replies.len()])
        }
    }

    #[test]
    fn no_judge_is_asked_about_a_reply_that_is_a_choice() {
        let choices = ["a cat", "the cat", "dog"].map(String::from);
        let answered = |reply, answer| Answered { reply, choices: &choices, answer };
        let all = [
            answered("the cat", "the cat"),
            answered("a bird", "a cat"),
            answered("dog", "a cat"),
            answered("a bird", "dog"),
            answered(" Dog", "dog"),
        ];
        assert_eq!(right(&First, &all).unwrap_or_default(), [true, true, false, false, true]);
    }
}
