//! Janus-Pro as curation knows it.

use image::RgbImage;

use hermesflow_nn::parallel;

use super::imagine::{DrawJob, DrawOptions};
use super::log_probs::AboutPicture;
use super::{Janus, pictures, reply};
use crate::backbone::other_decoding;
use crate::model::{
    GivenReply, ImageDecoding, ImageView, ImagineJob, ImagineOptions, Likelihood, Prepared, Reply, ReplyRequest,
    UnifiedModel,
};
use crate::preprocess::{Centre, fit_square};
use crate::{Error, Result};

impl UnifiedModel for Janus {
    fn resolution(&self) -> usize {
        self.config.resolution()
    }

    fn image_tokens(&self) -> usize {
        self.config.image_tokens
    }

    fn image_decoding(&self) -> ImageDecoding {
        ImageDecoding::NextCode
    }

    fn encode_images(&self, images: &[RgbImage]) -> Result<Vec<Vec<u32>>> {
        let side = self.resolution();
        let fit = |image: &RgbImage| fit_square(image.clone(), side, Centre::HalfToEven);
        self.vq.encode_images(&images.iter().map(fit).collect::<Result<Vec<_>>>()?, side)
    }

    fn decode_images(&self, codes: &[Vec<u32>]) -> Result<Vec<RgbImage>> {
        if let Some(codes) = codes.iter().find(|codes| codes.len() != self.config.image_tokens) {
            let message = format!("a picture has {} codes, this one {}", self.config.image_tokens, codes.len());
            return Err(Error::Invalid(message));
        }
        self.vq.decode_images(codes)
    }

    fn decode_grids(&self, codes: &[Vec<u32>], height: usize, width: usize) -> Result<Vec<RgbImage>> {
        let side = self.config.grid_side();
        if (height, width) != (side, side) {
            let message = format!("Janus-Pro makes pictures of {side}×{side} codes; {height}×{width} do not work");
            return Err(Error::Invalid(message));
        }
        self.decode_images(codes)
    }

    fn prepare(&self, picture: RgbImage) -> Result<Prepared> {
        Ok(Prepared::new(pictures::fit(&picture, &self.config.preprocessor)?))
    }

    fn understand(&self, pictures: &[Prepared]) -> Result<Vec<ImageView>> {
        // What is fitted stays as it is when it is fitted again.
        let pictures: Vec<RgbImage> = pictures.iter().map(|picture| picture.pixels().clone()).collect();
        Ok(self.features(&pictures)?.into_iter().map(ImageView::Features).collect())
    }

    fn kept_features(&self) -> Option<(usize, usize)> {
        Some((self.config.image_tokens, self.config.vision.width))
    }

    fn view_of_codes(&self, _codes: Vec<u32>) -> Option<ImageView> {
        None
    }

    fn check_question(&self, question: &str, max_new_tokens: usize) -> Result<()> {
        let rows = self.question_rows(&self.conversation.ask(question)?);
        self.fits(rows.saturating_add(max_new_tokens), question)
    }

    fn reply(&self, image: &ImageView, requests: &[ReplyRequest]) -> Result<Vec<Reply>> {
        Ok(self.reply_many(&[(image, requests)])?.pop().unwrap_or_default())
    }

    fn reply_many(&self, images: &[(&ImageView, &[ReplyRequest])]) -> Result<Vec<Vec<Reply>>> {
        reply::reply_many(self, images)
    }

    fn score_replies(&self, images: &[(&ImageView, &[GivenReply])]) -> Result<Vec<Vec<Likelihood>>> {
        let likelihoods = parallel::map(self.works_apart(), images, |(image, replies)| {
            let features = self.read_features(image)?;
            let about = |given: &GivenReply| (given.question.clone(), given.reply.trim().to_owned());
            let texts: Vec<(String, String)> = replies.iter().map(about).collect();
            let examples: Vec<AboutPicture> =
                texts.iter().map(|(question, reply)| AboutPicture { features, question, reply }).collect();
            if examples.is_empty() {
                return Ok(Vec::new());
            }
            // From one of the pool's own threads: from outside, every product would wake two threads and wait for both.
            let (sums, counts) = rayon::scope(|_| self.reply_log_probs(&examples))?;
            let sums = sums.to_vec1::<f32>()?;
            if !sums.iter().all(|sum| sum.is_finite()) {
                return Err(Error::NotFinite("a reply"));
            }
            Ok(sums.into_iter().zip(counts).map(|(sum, tokens)| Likelihood { log_prob: sum.into(), tokens }).collect())
        });
        likelihoods.into_iter().collect()
    }

    /// Never: a prompt that is too long is refused.
    fn cuts(&self, _prompt: &str) -> Result<bool> {
        Ok(false)
    }

    fn imagine(&self, jobs: &[ImagineJob], options: &ImagineOptions) -> Result<Vec<Vec<u32>>> {
        let ImagineOptions::NextCode(options) = options else {
            return Err(other_decoding(
                "draws one code after the other: steps, noise and mask schedules mean nothing to it",
            ));
        };
        if jobs.iter().any(|job| job.known.iter().any(Option::is_some)) {
            let message =
                "Janus-Pro makes whole pictures only: known codes (inpainting, extrapolation) are not supported";
            return Err(Error::Invalid(message.into()));
        }
        // Guidance g of (1 + g)·cond − g·uncond is w − 1 of uncond + w·(cond − uncond).
        let guidance = 1.0 + options.guidance;
        let jobs: Vec<DrawJob> = jobs.iter().map(|job| DrawJob { prompt: &job.prompt, seed: job.seed }).collect();
        let (temperature, cache_bytes) = (options.temperature, options.cache_bytes);
        self.draw(&jobs, &DrawOptions { guidance, temperature, cache_bytes })
    }
}

impl Janus {
    /// The features of an image that this model read.
    pub(super) fn read_features<'i>(&self, image: &'i ImageView) -> Result<&'i candle_core::Tensor> {
        match image {
            ImageView::Features(features) => Ok(features),
            ImageView::Codes(_) => {
                let message =
                    "the image is given by codes; Janus-Pro reads pixels: it was read by another kind of model";
                Err(Error::Invalid(message.into()))
            }
        }
    }
}
