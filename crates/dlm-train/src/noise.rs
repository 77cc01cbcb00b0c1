//! The draws of a batch: by default a function of seed, epoch and document, in a test whatever was recorded.

use dlm_data::Document;
use dlm_diffusion::{NoiseKey, Purpose, Timesteps, drops_prompt, random_length};

/// Where the uniform draws of training come from.
///
/// A document is one segment of a row: a whole text, or the piece of one that was cut.
pub trait NoiseSource {
    /// The draw that becomes the timestep of a document, in `[0, 1)`.
    ///
    /// With [`PackingIsolation::Row`](dlm_diffusion::PackingIsolation::Row) only the first document of a row is asked.
    fn timestep(&self, epoch: u64, document: &Document) -> f32;

    /// The draws that are compared with the mask probability, in `[0, 1)`: one for each token of the document.
    fn uniforms(&self, epoch: u64, document: &Document) -> Vec<f32>;

    /// What dropout inside the network follows from: a number for each token of the document; `None` drops nothing.
    fn dropout_keys(&self, epoch: u64, document: &Document) -> Option<Vec<i64>> {
        let _ = (epoch, document);
        None
    }

    /// The draw that becomes the timestep of one block of a document, in block diffusion; by default that of the document.
    fn block_timestep(&self, epoch: u64, document: &Document, _block: u64) -> f32 {
        self.timestep(epoch, document)
    }

    /// To how many tokens a document is cut, if it is; by default it is not.
    fn length(&self, _epoch: u64, _document: &Document) -> Option<usize> {
        None
    }

    /// Whether the denoiser is shown no prompt of a document; by default it is.
    fn drops_prompt(&self, _epoch: u64, _document: &Document) -> bool {
        false
    }
}

/// Noise as a function of (seed, purpose, epoch, document, occurrence, position inside the document).
///
/// So masks depend neither on packing, nor on the size of a micro-batch, nor on a restart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KeyedNoise {
    seed: u64,
    timesteps: Timesteps,
    stream: Stream,
    random_length: f64,
    prompt_drop: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Training,
    Evaluation,
}

impl KeyedNoise {
    /// The noise of a training run; every epoch has its own.
    #[must_use]
    pub fn training(seed: u64, timesteps: Timesteps) -> Self {
        Self { seed, timesteps, stream: Stream::Training, random_length: 0.0, prompt_drop: 0.0 }
    }

    /// The noise of evaluation: the same every time, evenly spread timesteps, and none of the draws that training uses.
    #[must_use]
    pub fn evaluation(seed: u64) -> Self {
        Self { stream: Stream::Evaluation, ..Self::training(seed, Timesteps::Stratified) }
    }

    /// The same noise, cutting documents to random lengths with this probability; the pieces of one document are cut alike.
    #[must_use]
    pub fn with_random_length(mut self, probability: f64) -> Self {
        self.random_length = probability;
        self
    }

    /// The same noise, showing no prompt with this probability.
    #[must_use]
    pub fn with_prompt_drop(mut self, probability: f64) -> Self {
        self.prompt_drop = probability;
        self
    }

    fn key(&self, purpose: Purpose, epoch: u64, document: &Document) -> NoiseKey {
        // An id is a stable number; its sign has no meaning here.
        NoiseKey::new(self.seed, purpose, epoch).of_document(document.id as u64, document.occurrence)
    }
}

impl NoiseSource for KeyedNoise {
    fn timestep(&self, epoch: u64, document: &Document) -> f32 {
        let key = match self.stream {
            Stream::Training => self.key(Purpose::Timestep, epoch, document),
            Stream::Evaluation => self.key(Purpose::Evaluation, 0, document),
        };
        match self.timesteps {
            // Each piece of a cut document has a timestep of its own.
            Timesteps::Independent => key.uniform(document.offset as u64),
            spread => spread.draw(&key, document.ordinal),
        }
    }

    fn block_timestep(&self, epoch: u64, document: &Document, block: u64) -> f32 {
        let key = match self.stream {
            Stream::Training => self.key(Purpose::Timestep, epoch, document),
            Stream::Evaluation => self.key(Purpose::Evaluation, 0, document),
        };
        match self.timesteps {
            // The blocks of each piece of a cut document have timesteps of their own.
            Timesteps::Independent => key.uniform(document.offset as u64 + block),
            spread => spread.draw_block(&key, document.ordinal, block),
        }
    }

    fn length(&self, epoch: u64, document: &Document) -> Option<usize> {
        random_length(&self.key(Purpose::Length, epoch, document), document.len, self.random_length)
    }

    fn drops_prompt(&self, epoch: u64, document: &Document) -> bool {
        drops_prompt(&self.key(Purpose::Drop, epoch, document), self.prompt_drop)
    }

    fn uniforms(&self, epoch: u64, document: &Document) -> Vec<f32> {
        let offset = document.offset as u64;
        match self.stream {
            Stream::Training => self.key(Purpose::Mask, epoch, document).uniforms(offset, document.len),
            // Position 0 of the stream is the timestep's.
            Stream::Evaluation => self.key(Purpose::Evaluation, 0, document).uniforms(offset + 1, document.len),
        }
    }

    fn dropout_keys(&self, epoch: u64, document: &Document) -> Option<Vec<i64>> {
        if self.stream == Stream::Evaluation {
            return None;
        }
        let draws = self.key(Purpose::Dropout, epoch, document).uniforms_f64(document.offset as u64, document.len);
        Some(draws.into_iter().map(|draw| (draw * f64::powi(2.0, 53)) as i64).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(id: i64, offset: i64, len: usize) -> Document {
        Document { row: 0, segment: 1, start: 0, len, id, offset, occurrence: 0, ordinal: 4 }
    }

    #[test]
    fn a_cut_document_is_masked_as_if_it_were_whole() {
        for noise in [KeyedNoise::training(7, Timesteps::Stratified), KeyedNoise::evaluation(7)] {
            let whole = noise.uniforms(2, &document(5, 0, 30));
            assert_eq!(noise.uniforms(2, &document(5, 10, 20)), whole[10..]);
        }
    }

    #[test]
    fn dropout_follows_from_the_token_in_training_and_evaluation_drops_nothing() {
        let training = KeyedNoise::training(7, Timesteps::Independent);
        let whole = training.dropout_keys(2, &document(5, 0, 30)).unwrap();
        assert_eq!(training.dropout_keys(2, &document(5, 10, 20)).unwrap(), whole[10..]);
        assert_ne!(training.dropout_keys(3, &document(5, 0, 30)).unwrap(), whole);
        assert_eq!(KeyedNoise::evaluation(7).dropout_keys(2, &document(5, 0, 30)), None);
    }

    #[test]
    fn the_pieces_of_a_cut_document_have_timesteps_of_their_own() {
        let noise = KeyedNoise::training(7, Timesteps::Independent);
        assert_ne!(noise.timestep(0, &document(5, 0, 10)), noise.timestep(0, &document(5, 10, 10)));
    }

    #[test]
    fn evaluation_repeats_itself_and_training_does_not() {
        let (training, evaluation) = (KeyedNoise::training(7, Timesteps::Independent), KeyedNoise::evaluation(7));
        let document = document(5, 0, 8);
        assert_eq!(evaluation.uniforms(0, &document), evaluation.uniforms(9, &document));
        assert_ne!(training.uniforms(0, &document), training.uniforms(9, &document));
        assert_ne!(training.uniforms(0, &document), evaluation.uniforms(0, &document));
        assert_ne!(training.timestep(0, &document), training.timestep(1, &document));
        assert_eq!(evaluation.timestep(0, &document), evaluation.timestep(1, &document));
    }
}
