//! Texts, pictures, the vision tower and replies.

use std::collections::BTreeMap;
use std::slice::from_ref;

use candle_core::{DType, Tensor};
use hermesflow_models::decoder::Decoder;
use hermesflow_models::janus::conversation::{SYSTEM, question_text};
use hermesflow_models::janus::{AboutPicture, pictures as read};
use hermesflow_models::preprocess;
use hermesflow_models::showo::reply::{QuestionRows, Sample, write_replies};
use hermesflow_models::showo::sequence::Packed;
use hermesflow_models::{ImageView, ReplyRequest, Sampling, UnifiedModel};
use image::RgbImage;

use super::{Loaded, Understanding};
use crate::check::{Report, values};
use crate::{Error, Result};

/// Ids of texts, texts of ids, and special tokens by their spelling.
pub(super) fn texts(loaded: &Loaded, report: &mut Report) -> Result<()> {
    let (case, tokenizer) = (&loaded.case, loaded.model.conversation().tokenizer());
    let special: BTreeMap<&str, Option<u32>> =
        case.special_ids.keys().map(|name| (name.as_str(), tokenizer.id(name))).collect();
    let wrong = case.special_ids.iter().filter(|(name, id)| special[name.as_str()] != Some(**id)).count();
    report.within("special ids (differing)", wrong as f64, 0.0);
    let tokens = loaded.model.config().image_tokens;
    report.within("tokens of a picture (differing)", tokens.abs_diff(case.num_image_tokens) as f64, 0.0);
    report.equal("system text (differing)", &[SYSTEM], &[case.system_prompt.as_str()]);
    if case.tokenizer.is_empty() {
        report.fail("texts", "case.json has no texts for the tokenizer");
    }
    for (at, text) in case.tokenizer.iter().enumerate() {
        report.equal(format!("ids of text {at} (differing)"), &tokenizer.encode(&text.text)?, &text.ids);
        report.equal(format!("text of ids {at} (differing)"), &[tokenizer.decode(&text.ids)?], from_ref(&text.decoded));
    }
    Ok(())
}

/// Pictures from their files to the tower's pixels.
pub(super) fn pictures(loaded: &Loaded, report: &mut Report) -> Result<()> {
    let config = &loaded.model.config().preprocessor;
    let (fitted, pixels) = (loaded.get("pre.fitted")?, loaded.get("pre.pixels")?);
    let side = config.image_size;
    let shape = [loaded.case.image_files.len(), 3, side, side];
    if fitted.dims() != shape || pixels.dims() != shape {
        report.fail("pictures", format!("shapes {:?}, {:?}, expected {shape:?}", fitted.dims(), pixels.dims()));
        return Ok(());
    }
    let mut recorded = Vec::new();
    for (at, file) in loaded.case.image_files.iter().enumerate() {
        let picture = preprocess::load(&loaded.folder.join(file))?;
        let theirs = picture_of(&fitted.get(at)?)?;
        let ours = read::fit(&picture, config)?;
        let place = read::Place::of(picture.dimensions(), config);
        let (mut levels, mut padding) = (0f64, 0);
        for (x, y, pixel) in ours.enumerate_pixels() {
            let other = theirs.get_pixel(x, y);
            let off = pixel.0.iter().zip(other.0).map(|(a, b)| a.abs_diff(b)).max().unwrap_or(0);
            match place.holds(x, y) {
                true => levels = levels.max(f64::from(off)),
                false => padding += usize::from(off > 0),
            }
        }
        report.within(format!("{file}, fitted (levels)"), levels, 1.0);
        report.within(format!("{file}, padding (differing)"), padding as f64, 0.0);
        recorded.push((ours, theirs));
    }
    let (ours, theirs): (Vec<RgbImage>, Vec<RgbImage>) = recorded.into_iter().unzip();
    let cpu = candle_core::Device::Cpu;
    report.close("pixels of the recorded pictures", &read::pixels(&theirs, config, &cpu)?, pixels, 1e-5)?;
    let level = config.rescale_factor / config.image_std.iter().copied().fold(f64::INFINITY, f64::min);
    report.close("pixels", &read::pixels(&ours, config, &cpu)?, pixels, level * 1.001)
}

/// `[3, h, w]` levels as a picture.
fn picture_of(levels: &Tensor) -> Result<RgbImage> {
    let (_, h, w) = levels.dims3()?;
    let bytes = levels.permute((1, 2, 0))?.contiguous()?.flatten_all()?.to_dtype(DType::U8)?.to_vec1::<u8>()?;
    RgbImage::from_raw(w as u32, h as u32, bytes).ok_or_else(|| Error::Case("pre.fitted is no picture".into()))
}

/// The tower's features, and what the aligner makes of them.
pub(super) fn tower(loaded: &Loaded, report: &mut Report) -> Result<()> {
    let recorded = loaded.get("vision.tower")?;
    report.close("vision tower", &loaded.features, recorded, loaded.tolerance(recorded, 1e-4)?)?;
    let recorded = loaded.get("vision.aligned")?;
    let (pictures, patches, width) = loaded.features.dims3()?;
    let aligned = loaded.model.align(&loaded.features.reshape((pictures * patches, width))?)?;
    let aligned = aligned.reshape((pictures, patches, ()))?;
    report.close("vision aligned", &aligned, recorded, loaded.tolerance(recorded, 1e-4)?)
}

/// Questions and replies as ids, and what the model gives a reply.
pub(super) fn replies(loaded: &Loaded, report: &mut Report) -> Result<()> {
    let conversation = loaded.model.conversation();
    for (at, asked) in loaded.case.understanding.iter().enumerate() {
        let Understanding { image, question, prompt, replies, .. } = asked;
        report.equal(format!("und {at}, text (differing)"), &[question_text(question)], from_ref(prompt));
        let ids = conversation.question(question)?;
        report.equal(format!("und {at}, ids (differing)"), &ids, &loaded.ids(&format!("und.{at}.ids"))?);
        let features = loaded.features.get(*image)?;
        let example = |reply| AboutPicture { features: &features, question, reply };
        let examples: Vec<AboutPicture> = replies.iter().map(|reply| example(reply)).collect();
        // All replies to a question in one pass.
        let logits = loaded.model.reply_logits(&examples)?;
        let (log_probs, counts) = loaded.model.reply_log_probs(&examples)?;
        let mut first = 0;
        for (number, reply) in replies.iter().enumerate() {
            let (base, name) = (format!("und.{at}.reply.{number}"), format!("und {at}, reply {number}"));
            let ids = conversation.reply(reply)?;
            report.equal(format!("{name}, ids (differing)"), &ids, &loaded.ids(&format!("{base}.ids"))?);
            let recorded = loaded.get(&format!("{base}.logits"))?;
            let ours = logits.narrow(0, first, counts[number])?;
            report.close(format!("{name}, logits"), &ours, recorded, loaded.tolerance(recorded, 5e-4)?)?;
            let recorded = loaded.get(&format!("{base}.logp"))?;
            let ours = log_probs.narrow(0, number, 1)?;
            report.close(format!("{name}, log-prob"), &ours, recorded, loaded.tolerance(recorded, 2e-3)?)?;
            first += counts[number];
        }
    }
    Ok(())
}

/// Greedy replies: all at once with the cache, each alone by full passes, and as curation asks for them.
pub(super) fn greedy(loaded: &Loaded, report: &mut Report) -> Result<()> {
    let (case, model) = (&loaded.case, &loaded.model);
    let (conversation, llama) = (model.conversation(), model.llama());
    let special = conversation.tokenizer().special;
    let request = |question: &str| ReplyRequest {
        question: question.into(),
        sampling: Sampling::GREEDY,
        seed: 0,
        max_new_tokens: case.max_new_tokens,
    };
    let (mut packed, mut questions, mut samples) = (Packed::default(), Vec::new(), Vec::new());
    for (at, Understanding { image, question, .. }) in case.understanding.iter().enumerate() {
        let asked = conversation.ask(question)?;
        let block = model.pack_picture(&mut packed, &asked.before, model.align(&loaded.features.get(*image)?)?)?;
        let rows = packed.push(&asked.behind, block.len(), vec![block.clone()], true);
        questions.push(QuestionRows { block, rows });
        samples.push(Sample::new(at, &request(question)));
    }
    write_replies(llama, &packed, &questions, &mut samples, special.end)?;
    for (at, (sample, asked)) in samples.iter().zip(&case.understanding).enumerate() {
        let recorded = loaded.ids(&format!("und.{at}.greedy"))?;
        let mut ours = sample.tokens.clone();
        if ours.len() < case.max_new_tokens {
            ours.push(special.end);
        }
        report.equal(format!("und {at}, greedy reply (differing)"), &ours, &recorded);
        let text = conversation.tokenizer().decode(&recorded)?;
        report.equal(format!("und {at}, greedy text (differing)"), &[text], from_ref(&asked.greedy_text));
        let alone = whole_passes(loaded, asked)?;
        report.equal(format!("und {at}, greedy reply, full passes (differing)"), &alone, &recorded);
    }
    let views: Vec<ImageView> = case
        .understanding
        .iter()
        .map(|asked| Ok(ImageView::Features(loaded.features.get(asked.image)?)))
        .collect::<Result<_>>()?;
    let requests: Vec<[ReplyRequest; 1]> = case.understanding.iter().map(|asked| [request(&asked.question)]).collect();
    let asked: Vec<_> = views.iter().zip(&requests).map(|(view, request)| (view, &request[..])).collect();
    let replies: Vec<String> = model.reply_many(&asked)?.into_iter().flatten().map(|reply| reply.text).collect();
    let recorded: Vec<String> = case.understanding.iter().map(|asked| asked.greedy_text.trim().to_string()).collect();
    report.equal("greedy replies, as curation asks (differing)", &replies, &recorded);
    Ok(())
}

/// The likeliest next token over and over, the whole sequence each time; the end token included.
fn whole_passes(loaded: &Loaded, asked: &Understanding) -> Result<Vec<u32>> {
    let (model, end) = (&loaded.model, loaded.model.conversation().tokenizer().special.end);
    let parts = model.conversation().ask(&asked.question)?;
    let aligned = model.align(&loaded.features.get(asked.image)?)?;
    let mut said: Vec<u32> = Vec::new();
    while said.len() < loaded.case.max_new_tokens && said.last() != Some(&end) {
        let mut packed = Packed::default();
        let block = model.pack_picture(&mut packed, &parts.before, aligned.clone())?;
        packed.push(&[&parts.behind[..], &said].concat(), block.len(), vec![block], true);
        let embedded = packed.embed(model.llama())?;
        let hidden = model.llama().forward(embedded, &packed.positions, &packed.segments(), None)?;
        let last = values(&model.llama().logits(&hidden.narrow(0, packed.ids.len() - 1, 1)?)?)?;
        if last.iter().any(|logit| logit.is_nan()) {
            return Err(Error::Case("a logit is no number".into()));
        }
        let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b]).then(b.cmp(&a))).unwrap_or(0);
        said.push(best as u32);
    }
    Ok(said)
}
