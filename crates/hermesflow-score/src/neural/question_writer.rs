//! TIFA's question writer (Hu et al., arXiv 2303.11897 §3.2): a LLaMA 2 fine-tuned to list what a caption names and to
//! ask about it.
//!
//! As in TIFA's released code:
//! 1. the prompt is a LLaMA 2 instruction that ends with `Entities:`, which the reply continues;
//! 2. the prompt spells out `<s>`, and the tokenizer adds another (a tokenizer that adds none leaves one);
//! 3. the search has five beams and at most 512 tokens, the prompt included;
//! 4. the reply is the text after the prompt, cut at the first blank line ([`tifa::parse_reply`]).

use std::path::Path;

use candle_core::{DType, Device};

use super::gguf::gguf;
use super::tokenizer::cleaned;
use super::{Llama, TextTokenizer};
use crate::Question;
use crate::QuestionWriter;
use crate::Result;
use crate::tifa;

/// The largest number of tokens of prompt and reply.
const LONGEST: usize = 512;

/// The instruction that the writer was trained with.
const INSTRUCTION: &str = "Given an image description, generate one or two multiple-choice questions that verifies if \
                           the image description is correct.\nClassify each concept into a type (object, human, \
                           animal, food, activity, attribute, counting, color, material, spatial, location, shape, \
                           other), and then generate a question for each type.\n";

/// Writes questions with TIFA's fine-tuned LLaMA 2.
#[derive(Debug)]
pub struct LlamaWriter {
    model: Llama,
    tokenizer: TextTokenizer,
    beams: usize,
}

impl LlamaWriter {
    /// Loads a model folder with weights held as `dtype`, or a GGUF file with its tokenizer.json beside it. On the CPU,
    /// f32 is fast but large; if it does not fit, use a GGUF file rather than 16 bits.
    ///
    /// # Errors
    /// If a file is missing or malformed, or the model does not fit into memory; the file is named.
    pub fn load(path: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let model = Llama::load(path, dtype, device)?;
        let file = gguf(path);
        let folder = file.as_deref().and_then(Path::parent).unwrap_or(path);
        let tokenizer = TextTokenizer::load(folder, model.vocab_size())?.reading_controls();
        Ok(Self { model, tokenizer, beams: 5 })
    }

    /// Sets the number of beams; 1 is greedy. Default: 5.
    pub fn with_beams(mut self, beams: usize) -> Self {
        self.beams = beams.max(1);
        self
    }

    /// The model's reply about a caption, starting after `Entities:`.
    ///
    /// # Errors
    /// If the model fails.
    pub fn reply(&self, caption: &str) -> Result<String> {
        let prompt = self.model.framed(&self.tokenizer, &prompt(&without_controls(caption)))?;
        let most = LONGEST.saturating_sub(prompt.len());
        let said = match self.beams {
            1 => self.model.greedy(&prompt, most)?,
            beams => self.model.beam(&prompt, beams, most)?.ids,
        };
        let before = cleaned(&self.tokenizer.text(&prompt)?);
        let whole = cleaned(&self.tokenizer.text(&[prompt, said].concat())?);
        Ok(whole.chars().skip(before.chars().count()).collect())
    }
}

impl QuestionWriter for LlamaWriter {
    fn write(&self, captions: &[&str]) -> Result<Vec<Vec<Question>>> {
        captions.iter().map(|caption| Ok(tifa::parse_reply(&self.reply(caption)?))).collect()
    }
}

fn prompt(caption: &str) -> String {
    format!("<s>[INST] <<SYS>>\n{INSTRUCTION}\n<</SYS>>\n\nDescription: {caption} [/INST] Entities:")
}

/// A caption in which no text is read as a control token: spellings of these are taken apart.
fn without_controls(caption: &str) -> String {
    ["<s>", "</s>", "<unk>"]
        .iter()
        .fold(caption.to_string(), |caption, name| caption.replace(name, &name.replace('<', "< ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_is_the_one_of_the_training() {
        let prompt = prompt("a blue rabbit");
        assert_eq!(without_controls("a </s> b <s>"), "a < /s> b < s>");
        assert!(prompt.starts_with("<s>[INST] <<SYS>>\nGiven an image description, generate one or two"));
        assert!(
            prompt.contains("is correct.\nClassify each concept into a type (object, human, animal, food, activity,")
        );
        assert!(prompt.ends_with("for each type.\n\n<</SYS>>\n\nDescription: a blue rabbit [/INST] Entities:"));
    }
}
