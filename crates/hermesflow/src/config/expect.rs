//! The `model.expect` section: what a run's file says about its checkpoint.
//!
//! The checkpoint's own `config.json` decides every size; these numbers are compared with it when it is opened, so
//! that a run does not begin with another checkpoint than the one it was written for.

use anyhow::{Result, bail, ensure};
use hermesflow_models::showo::config::ADDED_TOKENS;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Facts that the checkpoint must fulfil; those that are absent may be anything. They are compared with its `config.json`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    /// Size of the whole vocabulary: text tokens, added tokens, image tokens and the mask token.
    ///
    /// Unit: tokens.
    /// Source: released code, `model.showo.vocab_size`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vocab_size: Option<usize>,
    /// Number of text tokens, without the added ones.
    ///
    /// Unit: tokens.
    /// Source: released code, `model.showo.llm_vocab_size`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub llm_vocab_size: Option<usize>,
    /// Number of codes of the image tokenizer.
    ///
    /// Unit: codes.
    /// Source: released code, `model.showo.codebook_size`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub codebook_size: Option<usize>,
    /// Number of tokens of an image.
    ///
    /// Unit: tokens.
    /// Source: released code, `model.showo.num_vq_tokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_tokens: Option<usize>,
    /// Side of the images.
    ///
    /// Unit: pixels.
    /// Source: released code, `dataset.params.resolution`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolution: Option<usize>,
    /// Whether the model understands images by features of CLIP.
    ///
    /// Source: released code, `model.showo.w_clip_vit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<bool>,
}

/// What is compared of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Size of the whole vocabulary.
    pub vocab_size: usize,
    /// Number of text tokens, where text and image tokens share a vocabulary.
    pub llm_vocab_size: Option<usize>,
    /// Number of codes of the image tokenizer.
    pub codebook_size: usize,
    /// Number of tokens of an image.
    pub image_tokens: usize,
    /// Side of the images, in pixels.
    pub resolution: usize,
    /// Whether the model understands images by features of CLIP.
    pub clip: bool,
}

/// The keys of `model.expect`, and what the original's files and the checkpoint call them.
const NAMES: [(&str, &str, &str); 6] = [
    ("vocab_size", "model.showo.vocab_size", "vocab_size"),
    ("llm_vocab_size", "model.showo.llm_vocab_size", "llm_vocab_size"),
    ("codebook_size", "model.showo.codebook_size", "codebook_size"),
    ("image_tokens", "model.showo.num_vq_tokens", "num_vq_tokens"),
    ("resolution", "dataset.params.resolution", "num_vq_tokens times the image tokenizer's downsampling"),
    ("clip", "model.showo.w_clip_vit", "w_clip_vit"),
];

/// A key as our files have it.
fn own_name(key: &str) -> String {
    format!("model.expect.{key}")
}

/// A key as the original's files have it.
pub fn original_name(key: &str) -> String {
    NAMES.iter().find(|(own, ..)| *own == key).map_or_else(|| own_name(key), |(_, original, _)| (*original).into())
}

impl Expect {
    /// Whether nothing is expected.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Checks the numbers against each other.
    ///
    /// # Errors
    /// Names the keys that contradict each other.
    pub fn validate(&self) -> Result<()> {
        self.validate_as(own_name)
    }

    /// As [`Expect::validate`], with the keys under other names.
    ///
    /// # Errors
    /// Names the keys that contradict each other.
    pub fn validate_as(&self, name: impl Fn(&str) -> String) -> Result<()> {
        if let (Some(all), Some(text), Some(codes)) = (self.vocab_size, self.llm_vocab_size, self.codebook_size) {
            let added = ADDED_TOKENS.len();
            let sum = text.saturating_add(codes).saturating_add(added + 1);
            ensure!(
                all == sum,
                "{}: {all} is not {text} ({}) + {added} added tokens + {codes} ({}) + 1 mask token = {sum}",
                name("vocab_size"),
                name("llm_vocab_size"),
                name("codebook_size")
            );
        }
        Ok(())
    }

    /// Compares with an opened checkpoint; `name` is `model.checkpoint`.
    ///
    /// # Errors
    /// Says what differs, where each number comes from, and what to do.
    pub fn check(&self, name: &str, facts: &Facts) -> Result<()> {
        let text = |number: Option<usize>| number.map(|number| number.to_string());
        let facts = [
            (text(self.vocab_size), facts.vocab_size.to_string()),
            (text(self.llm_vocab_size), text(facts.llm_vocab_size).unwrap_or_default()),
            (text(self.codebook_size), facts.codebook_size.to_string()),
            (text(self.image_tokens), facts.image_tokens.to_string()),
            (text(self.resolution), facts.resolution.to_string()),
            (self.clip.map(|clip| clip.to_string()), facts.clip.to_string()),
        ];
        let (mut differing, mut remedy) = (Vec::new(), Vec::new());
        for ((key, original, origin), (expected, found)) in NAMES.into_iter().zip(facts) {
            if let Some(expected) = expected.filter(|expected| *expected != found) {
                differing
                    .push(format!("{key} is {expected} in the run's file and {found} in the checkpoint ({origin})"));
                remedy.push(format!("{original}={found}"));
            }
        }
        if differing.is_empty() {
            return Ok(());
        }
        bail!(
            "model.expect: {name} is not the checkpoint that this file was written for: {}. Give model.checkpoint the \
             right one or, if this one is meant, correct the file's numbers under model.expect (model.expect={{}} \
             expects nothing; in a file of the original: {})",
            differing.join("; "),
            remedy.join(" ")
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PUBLISHED: Expect = Expect {
        vocab_size: Some(58498),
        llm_vocab_size: Some(50295),
        codebook_size: Some(8192),
        image_tokens: Some(1024),
        resolution: Some(512),
        clip: Some(false),
    };

    fn checkpoint(image_tokens: usize, resolution: usize) -> Facts {
        Facts {
            vocab_size: 58498,
            llm_vocab_size: Some(50295),
            codebook_size: 8192,
            image_tokens,
            resolution,
            clip: false,
        }
    }

    #[test]
    fn the_published_numbers_agree_with_the_published_checkpoint() {
        PUBLISHED.validate().unwrap();
        PUBLISHED.check("showlab/show-o-512x512", &checkpoint(1024, 512)).unwrap();
        Expect::default().check("any", &checkpoint(7, 3)).unwrap();
    }

    #[test]
    fn every_number_that_differs_is_named_with_its_origin() {
        let message = PUBLISHED.check("models/show-o", &checkpoint(256, 256)).unwrap_err().to_string();
        for part in [
            "models/show-o is not",
            "image_tokens is 1024 in the run's file and 256 in the checkpoint (num_vq_tokens)",
            "resolution is 512",
            "model.showo.num_vq_tokens=256 dataset.params.resolution=256",
        ] {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert!(!message.contains("codebook"), "{message}");
        let clip = Expect { clip: Some(true), ..Expect::default() };
        let message = clip.check("m", &checkpoint(256, 256)).unwrap_err().to_string();
        assert!(message.contains("clip is true in the run's file and false"), "{message}");
    }

    #[test]
    fn numbers_that_contradict_each_other_are_refused() {
        let problem = |expect: Expect| expect.validate().unwrap_err().to_string();
        let message = problem(Expect { codebook_size: Some(4096), ..PUBLISHED });
        assert!(message.contains("model.expect.vocab_size: 58498") && message.contains("54402"), "{message}");
        Expect { llm_vocab_size: None, codebook_size: Some(9), ..PUBLISHED }.validate().unwrap();
    }
}
