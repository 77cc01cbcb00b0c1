//! Hugging Face tokenizers as model folders hold them: special tokens, the mask token, chat templates, training.
//!
//! A [`Tokenizer`] is loaded from a model folder, or trained on texts. It turns text into ids in one of two ways
//! ([`Specials`]): what people say stays text even where it spells a special token, and what templates write may hold special
//! tokens. [`Tokenizer::resolve_mask_token`] finds the token that diffusion hides words behind, and adds it where a tokenizer
//! has none; [`Tokenizer::files`] is what is then saved beside the model, for this crate and for transformers alike.
//!
//! ```
//! use dlm_tokenizer::{KeepSpecials, Specials, Tokenizer, TrainOptions};
//!
//! let texts = ["A mask hides a word.", "The model guesses the word behind the mask."].map(String::from);
//! let mut tokenizer = Tokenizer::train_bpe(texts.into_iter(), &TrainOptions::new(300))?;
//!
//! let ids = tokenizer.encode("the mask", Specials::AsText)?;
//! assert_eq!(tokenizer.decode(&ids, KeepSpecials::Yes)?, "the mask");
//!
//! // A special token is one where a template writes it, and text where a user does.
//! let mask = tokenizer.resolve_mask_token(None, "<|diffusion_mask|>")?;
//! assert_eq!(tokenizer.encode("<|diffusion_mask|>", Specials::Parse)?, [mask.id]);
//! assert!(!tokenizer.encode("<|diffusion_mask|>", Specials::AsText)?.contains(&mask.id));
//! # Ok::<(), dlm_tokenizer::TokenizerError>(())
//! ```
//!
//! # Speed
//!
//! Tokenizers of a kind that is known are encoded by this crate's own byte-level BPE ([`Tokenizer::is_fast`]): words are cut by
//! hand-written code instead of a regular expression, common words are remembered with their ids, and merging takes time in
//! proportion to the text however long its words are. Known are BPE models over bytes whose words come from GPT-2's pattern (the
//! `ByteLevel` pre-tokenizer, alone or behind `Digits`), GPT-4's or Qwen's (`Split`), with no normalizer or `NFC`. Added tokens
//! are found where the library finds them. Whatever a `tokenizer.json` says beyond that (an unknown token, `byte_fallback`,
//! added tokens that strip white space, another pattern, another model) leaves the text to the `tokenizers` library.
//! A [`Session`] is how a thread encodes many texts; whoever encodes one by one borrows from the same pool of memory each time.
//!
//! The ids are the library's. This is proven by tests with random text of every kind, for each combination of pattern,
//! normalizer and added tokens and for the golden tokenizers; by vocabularies whose merges come in any order; by comparing the
//! classes of all characters with those of the library's regular expressions; and by `make interop-data`, which compares the
//! ids of whole files with those of Python's `tokenizers`.
//!
//! # Conversations
//!
//! A [`ChatTemplate`] renders messages to the text that a model was taught to read. Here, too, users may write what they like:
//! [`ChatTemplate::render_parts`] keeps track of special tokens that messages spell, and [`Tokenizer::encode_rendered`] reads
//! them as text. The [`Encoded`] ids know which bytes they came from, so `{% generation %}` blocks become a mask over tokens.
//!
//! ```
//! # use dlm_tokenizer::{ChatTemplate, KeepSpecials, Message, Tokenizer, TrainOptions};
//! # let tokenizer = Tokenizer::train_bpe(["user: hi".to_owned()].into_iter(), &TrainOptions::new(300))?;
//! let source = "{% for message in messages %}{{ message.role }}: {{ message.content }}{{ eos_token }}{% endfor %}";
//! let template = ChatTemplate::from_source("example", source)?;
//! let messages = [Message::new("user", "What does <|endoftext|> mean?")];
//!
//! let rendered = template.render_parts(&messages, &tokenizer.render_options())?;
//! assert_eq!(rendered.text, "user: What does <|endoftext|> mean?<|endoftext|>");
//! let ids = tokenizer.encode_rendered(&rendered)?.ids;
//! assert_eq!(tokenizer.decode(&ids, KeepSpecials::No)?, "user: What does <|endoftext|> mean?");
//! # Ok::<(), dlm_tokenizer::TokenizerError>(())
//! ```

mod built_in;
mod chat_template;
mod encode;
mod error;
mod fast;
mod folder;
mod generation;
mod mask;
mod message;
mod python_json;
mod roles;
mod session;
mod special;
mod tokenizer;
mod train;

pub use chat_template::{ChatTemplate, RenderOptions, Rendered};
pub use encode::{Encoded, Part, Specials, Spellings};
pub use error::{Result, TokenizerError};
pub use mask::MaskToken;
pub use message::Message;
pub use session::Session;
pub use special::{SpecialToken, SpecialTokens};
pub use tokenizer::{KeepSpecials, Tokenizer};
pub use train::{Progress, TrainOptions, TrainSpecials};
