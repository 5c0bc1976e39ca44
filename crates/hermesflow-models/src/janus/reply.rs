//! Replies about pictures: each picture and each question is computed once and shared by all their replies.

use std::collections::HashMap;

use hermesflow_nn::parallel;

use super::Janus;
use super::conversation::Asked;
use crate::Result;
use crate::decoder::Decoder;
use crate::model::{ImageView, Reply, ReplyRequest};
use crate::showo::reply::{QuestionRows, Sample, images_together, write_replies};
use crate::showo::sequence::Packed;

/// The ids of each question, by its text.
type Questions<'a> = HashMap<&'a str, Asked>;

/// Replies to all requests, in order.
pub(super) fn reply_many(model: &Janus, images: &[(&ImageView, &[ReplyRequest])]) -> Result<Vec<Vec<Reply>>> {
    let mut asked: Questions<'_> = HashMap::new();
    let mut rows = 0;
    for (_, requests) in images {
        let mut here = 0;
        for request in *requests {
            if !asked.contains_key(request.question.as_str()) {
                asked.insert(&request.question, model.conversation.ask(&request.question)?);
            }
            let question = model.question_rows(&asked[request.question.as_str()]);
            model.fits(question.saturating_add(request.max_new_tokens), &request.question)?;
            here += question + request.max_new_tokens;
        }
        rows = rows.max(here);
    }
    let replies = images.iter().map(|(_, requests)| requests.len()).max().unwrap_or(0);
    let cache = (model.llama.cache_bytes_per_row(), !model.llama.device().is_cpu());
    let batches: Vec<_> = images.chunks(images_together(images.len(), replies, rows, cache)).collect();
    let replies = parallel::map(model.works_apart(), &batches, |images| reply_batch(model, &asked, images));
    Ok(replies.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

fn reply_batch(
    model: &Janus,
    asked: &Questions<'_>,
    images: &[(&ImageView, &[ReplyRequest])],
) -> Result<Vec<Vec<Reply>>> {
    let mut packed = Packed::default();
    let (mut questions, mut samples) = (Vec::new(), Vec::new());
    for (image, requests) in images {
        let features = model.read_features(image)?;
        let Some(first) = requests.first() else { continue };
        let before = &asked[first.question.as_str()].before;
        let block = model.pack_picture(&mut packed, before, model.align(features)?)?;
        let mut known: HashMap<&str, usize> = HashMap::new();
        for request in *requests {
            let question = *known.entry(&request.question).or_insert_with(|| {
                let behind = &asked[request.question.as_str()].behind;
                let rows = packed.push(behind, block.len(), vec![block.clone()], true);
                questions.push(QuestionRows { block: block.clone(), rows });
                questions.len() - 1
            });
            samples.push(Sample::new(question, request));
        }
    }
    let tokenizer = model.conversation.tokenizer();
    // From one of the pool's own threads: from outside, every product would wake two threads and wait for both.
    parallel::awake(|| write_replies(&model.llama, &packed, &questions, &mut samples, tokenizer.special.end))?;
    let reply = |sample: Sample| -> Result<Reply> {
        Ok(Reply { text: tokenizer.decode(&sample.tokens)?.trim().to_string(), log_prob: sample.log_prob })
    };
    let mut replies = samples.into_iter().map(reply);
    images.iter().map(|(_, requests)| replies.by_ref().take(requests.len()).collect()).collect()
}

impl Janus {
    /// The rows of a question with its picture.
    pub(super) fn question_rows(&self, asked: &Asked) -> usize {
        asked.before.len() + self.config.image_tokens + 1 + asked.behind.len()
    }
}
