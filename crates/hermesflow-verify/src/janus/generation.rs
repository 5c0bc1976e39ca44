//! Prompts, drawing codes, pictures of codes, the image tokenizer, and the likelihood of codes.

use std::slice::from_ref;

use candle_core::Tensor;
use hermesflow_models::janus::conversation::prompt_text;
use hermesflow_models::janus::pictures::level;
use hermesflow_models::janus::{DrawOptions, Drawing, OfCodes, vq};

use super::Loaded;
use crate::check::{Report, largest, largest_difference, values};
use crate::{Error, Result};

/// Prompts and unconditional rows as ids.
pub(super) fn sequences(loaded: &Loaded, report: &mut Report) -> Result<()> {
    let conversation = loaded.model.conversation();
    for (at, made) in loaded.case.generation.iter().enumerate() {
        report.equal(format!("gen {at}, text (differing)"), &[prompt_text(&made.prompt)], from_ref(&made.formatted));
        let ids = conversation.prompt(&made.prompt)?;
        report.equal(format!("gen {at}, ids (differing)"), &ids, &loaded.ids(&format!("gen.{at}.ids"))?);
        let (ids, name) = (conversation.unconditional(&ids), format!("gen.{at}.uncond_ids"));
        report.equal(format!("gen {at}, unconditional ids (differing)"), &ids, &loaded.ids(&name)?);
    }
    Ok(())
}

/// Every step of drawing codes: logits, probabilities, and the code that the recorded number draws.
pub(super) fn steps(loaded: &Loaded, report: &mut Report) -> Result<()> {
    let (model, tokens) = (&loaded.model, loaded.case.num_image_tokens);
    for (at, made) in loaded.case.generation.iter().enumerate() {
        let name = |key: &str| format!("gen.{at}.{key}");
        let (cond, probs) = (loaded.get(&name("cond"))?, loaded.get(&name("probs"))?);
        let uncond = loaded.find(&name("uncond"));
        let (uniform, codes) = (loaded.get(&name("uniform"))?, loaded.rows(&name("codes"))?);
        let shape = [made.images, tokens, model.config().vq.codes];
        let fits = [Some(cond), Some(probs), uncond].into_iter().flatten().all(|tensor| tensor.dims() == shape)
            && uniform.dims() == [made.images, tokens]
            && codes.len() == made.images
            && codes.iter().all(|codes| codes.len() == tokens)
            && (uncond.is_some() || made.guidance == 1.0);
        if !fits {
            report.fail(format!("gen {at}"), format!("the recorded steps do not have the shape {shape:?}"));
            continue;
        }
        let uniform = uniform.to_vec2::<f32>()?;
        let options = DrawOptions { guidance: made.guidance, temperature: made.temperature, ..DrawOptions::default() };
        let prompts = vec![loaded.ids(&name("ids"))?; made.images];
        let mut drawing = Drawing::new(model, &prompts, uncond.is_some())?;
        let (mut off, mut off_probs, mut wrong) = ([0f64; 2], 0f64, 0);
        for step in 0..tokens {
            let of_step = |tensor: &Tensor| tensor.narrow(1, step, 1)?.squeeze(1);
            let (ours, without) = drawing.logits()?;
            off[0] = largest([off[0], largest_difference(&ours, &of_step(cond)?)?].into_iter());
            if let (Some(ours), Some(uncond)) = (without, uncond) {
                off[1] = largest([off[1], largest_difference(&ours, &of_step(uncond)?)?].into_iter());
            }
            let ours: Vec<f32> = drawing.probabilities(&options)?.concat();
            let recorded = values(&of_step(probs)?)?;
            let differences = ours.iter().zip(&recorded).map(|(a, b)| f64::from(*a) - f64::from(*b));
            off_probs = largest([off_probs, largest(differences)].into_iter());
            let marks: Vec<f64> = uniform.iter().map(|row| f64::from(row[step])).collect();
            let recorded: Vec<u32> = codes.iter().map(|codes| codes[step]).collect();
            wrong += drawing.codes(&options, &marks)?.iter().zip(&recorded).filter(|(a, b)| a != b).count();
            if step + 1 < tokens {
                drawing.advance(&recorded)?;
            }
        }
        report.within(format!("gen {at}, logits"), off[0], loaded.tolerance(cond, 1e-4)?);
        if let Some(uncond) = uncond {
            report.within(format!("gen {at}, unconditional logits"), off[1], loaded.tolerance(uncond, 1e-4)?);
        }
        if loaded.is_wide() {
            report.within(format!("gen {at}, probabilities"), off_probs, 1e-4);
            report.within(format!("gen {at}, codes (differing)"), wrong as f64, 0.0);
        }
    }
    Ok(())
}

/// Pictures of drawn codes, as floats and as levels.
pub(super) fn decoded(loaded: &Loaded, report: &mut Report) -> Result<()> {
    let vq = loaded.model.vq()?;
    for at in 0..loaded.case.generation.len() {
        let decoded = vq.decode(&vq.vectors(&loaded.rows(&format!("gen.{at}.codes"))?)?)?;
        report.close(format!("gen {at}, pictures"), &decoded, loaded.get(&format!("gen.{at}.decoded"))?, 5e-4)?;
        let Some(levels) = loaded.find(&format!("png.{at}.u8")) else { continue };
        let pictures = vq::pictures(loaded.get(&format!("gen.{at}.decoded"))?)?;
        let ours: Vec<u8> = pictures.into_iter().flat_map(image::RgbImage::into_raw).collect();
        report.equal(format!("gen {at}, levels (differing)"), &ours, &levels.flatten_all()?.to_vec1::<u8>()?);
    }
    let ours: Vec<u8> = values(loaded.get("png.edge")?)?.into_iter().map(level).collect();
    let recorded = loaded.get("png.edge_u8")?.flatten_all()?.to_vec1::<u8>()?;
    report.equal("levels at the edges (differing)", &ours, &recorded);
    Ok(())
}

/// Encode, quantize, decode.
pub(super) fn image_tokenizer(loaded: &Loaded, report: &mut Report) -> Result<()> {
    let vq = loaded.model.vq()?;
    let recorded = loaded.get("vq.encoder_out")?;
    let encoded = vq.encode(&loaded.get("vq.image")?.to_device(&loaded.device)?)?;
    report.close("vq encoder", &encoded, recorded, 1e-4)?;
    let (codes, margins) = (loaded.rows("vq.code")?, loaded.get("vq.margin")?.to_vec2::<f32>()?);
    if codes.len() != margins.len() || codes.iter().zip(&margins).any(|(codes, margins)| codes.len() != margins.len()) {
        return Err(Error::Case("vq.margin has not one number for each of vq.code".into()));
    }
    for (what, encoded) in
        [("vq codes", &encoded), ("vq codes of the recorded vectors", &recorded.to_device(&loaded.device)?)]
    {
        let ours = vq.quantize(encoded)?;
        let lengths = ours.len() == codes.len() && ours.iter().zip(&codes).all(|(a, b)| a.len() == b.len());
        // A code may differ where two rows of the codebook are equally near but for rounding.
        let settled = margins.concat().into_iter().map(|margin| margin > 1e-5);
        let differing = ours.concat().into_iter().zip(codes.concat()).zip(settled);
        let differing = differing.filter(|((a, b), settled)| a != b && *settled).count();
        report.within(format!("{what} (differing)"), if lengths { differing as f64 } else { f64::NAN }, 0.0);
    }
    report.close("vq decoder", &vq.decode(&vq.vectors(&codes)?)?, loaded.get("vq.decoded")?, 5e-4)
}

/// The likelihood of codes in one teacher-forced pass, with and without the prompt.
pub(super) fn scores(loaded: &Loaded, report: &mut Report) -> Result<()> {
    let codes = loaded.rows("score.codes")?;
    let first = loaded.case.generation.first().ok_or_else(|| Error::Case("case.json has no generation".into()))?;
    for (name, unconditional) in [("cond", false), ("uncond", true)] {
        let example = |codes| OfCodes { prompt: &first.prompt, unconditional, codes };
        let examples: Vec<OfCodes> = codes.iter().map(|codes| example(codes)).collect();
        let recorded = loaded.get(&format!("score.{name}.logits"))?;
        let logits = loaded.model.code_logits(&examples)?.reshape((codes.len(), loaded.case.num_image_tokens, ()))?;
        report.close(format!("score {name}, logits"), &logits, recorded, loaded.tolerance(recorded, 1e-4)?)?;
        let recorded = loaded.get(&format!("score.{name}.logp"))?;
        let ours = loaded.model.code_log_probs(&examples)?;
        report.close(format!("score {name}, log-prob"), &ours, recorded, loaded.tolerance(recorded, 1e-3)?)?;
    }
    Ok(())
}
