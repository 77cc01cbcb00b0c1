//! The steps that make tokens of rows, and rows of tokens, in a plan.

use crate::{
    answer_tail::{AnswerTail, AnswerTailStage},
    chat::{ChatFormat, expect_template},
    chat_fields::expect_fields,
    chat_options::Chat,
    chat_stage::{CHAT, ChatStage},
    error::{DataError, Result},
    functions::is_validation,
    number::{NUMBER, NumberStage},
    packing::{PackStage, require},
    plan::{Lowering, ROW, VALIDATION, name},
    remote,
    step::{Pack, Step, Tokenize},
    tokenize::{Encoder, INPUT_IDS, LABELS, TokenizeStage, signed},
    turn_end_check::endless,
};
use dlm_tokenizer::Tokenizer;
use std::{path::PathBuf, sync::Arc};

impl Lowering<'_> {
    /// Marks the documents of the validation side.
    pub(crate) fn mark_validation(&mut self) -> Result<()> {
        match self.split.take() {
            None => Ok(()),
            Some(split) => {
                require("split", &self.schema(), INPUT_IDS)?;
                let side = is_validation(&split).call(vec![name(INPUT_IDS)]);
                self.change("split", |frame| frame.with_column(VALIDATION, side))
            }
        }
    }

    /// Makes conversations: of rows whose source has a format of its own by that, of the others by `default`.
    pub(crate) fn chat(&mut self, default: Option<&Chat>) -> Result<()> {
        let step = self.pipeline.tokenize_step().ok_or_else(|| {
            DataError::pipeline("the step `chat` needs a `tokenize` step behind it, whose tokenizer it uses")
        })?;
        let (tokenizer, path) = self.load(step)?;
        let schema = self.schema();
        let mut of_source = Vec::new();
        for source in &self.pipeline.source {
            let chat = source.chat.as_ref().or(default).ok_or_else(|| {
                let path = &source.path;
                DataError::pipeline(format!(
                    "the source `{path}` has no `chat` of its own, and there is no step `chat`"
                ))
            })?;
            let known = self.chats.iter().position(|known| known == chat);
            of_source.push(known.unwrap_or(self.chats.len()));
            if known.is_none() {
                chat.required_columns().into_iter().try_for_each(|name| require("chat", &schema, name))?;
                expect_fields(chat, &schema)?;
                expect_template(chat, &tokenizer, path.clone())?;
                self.chats.push(chat.clone());
            }
        }
        if let (Some(step), [_, _, ..]) = (self.rows.maker(), self.chats.as_slice()) {
            return Err(DataError::pipeline(format!(
                "behind `{step}` no row has a source any more, so that sources cannot have a `chat` of their own: \
                 use one step `chat`"
            )));
        }
        let base = &self.pipeline.base;
        let format = |chat: &Chat| ChatFormat::new(chat, Arc::clone(&tokenizer), base);
        let formats = self.chats.iter().map(format).collect::<Result<Vec<_>>>()?;
        self.templates = formats.iter().map(|format| format.template().map(str::to_owned)).collect();
        formats.iter().flat_map(ChatFormat::expected).for_each(|what| self.account.expect(what.clone()));
        self.add(ChatStage {
            formats,
            of_source,
            options: self.chats.iter().map(Chat::describe).collect::<Vec<_>>().join("; "),
            input: schema,
            rows: Arc::clone(&self.rows),
            account: Arc::clone(&self.account),
            threads: self.resources.threads,
        })
    }

    /// Gives documents their numbers, before that step.
    pub(crate) fn number(&mut self, next: &Step) -> Result<()> {
        if let Step::Tokenize(tokenize) = next
            && self.chats.is_empty()
            && self.pipeline.source.iter().all(|source| source.chat.is_none())
        {
            // Columns that nobody asks for behind this need not even be read from the files.
            require("tokenize", &self.schema(), &tokenize.column)?;
            let columns = vec![name(ROW), name(&tokenize.column)];
            self.change("tokenize", |frame| frame.select(columns))?;
        }
        self.add(NumberStage { input: self.schema(), resume: Arc::clone(&self.resume) })
    }

    pub(crate) fn is_numbered(&self) -> bool {
        self.schema().column_with_name(NUMBER).is_some()
    }

    pub(crate) fn tokenize(&mut self, step: &Tokenize) -> Result<()> {
        if self.chats.is_empty() && self.pipeline.source.iter().any(|source| source.chat.is_some()) {
            self.chat(None)?;
        }
        if !self.chats.is_empty() && step.column != Tokenize::new("").column {
            let message =
                format!("`tokenize.column` is `{}`, and what `chat` makes is tokenized: leave it out", step.column);
            return Err(DataError::pipeline(message));
        }
        let text = self.chats.is_empty().then(|| step.column.clone());
        require("tokenize", &self.schema(), text.as_deref().unwrap_or(CHAT))?;
        if let Some(column) = &text {
            self.require_text("tokenize", &self.schema(), column)?;
        }
        let (tokenizer, path) = self.load(step)?;
        let encoder = |chat| Encoder::new(Arc::clone(&tokenizer), &path, step, chat);
        let encoders = match self.chats.as_slice() {
            [] => vec![encoder(None)?],
            chats => chats.iter().map(|chat| encoder(Some(chat))).collect::<Result<_>>()?,
        };
        for (chat, encoder) in self.chats.iter().zip(&encoders) {
            let format = ChatFormat::new(chat, Arc::clone(&tokenizer), &self.pipeline.base)?;
            self.warnings.extend(endless(chat, &format, encoder));
        }
        self.add(TokenizeStage {
            step: step.clone(),
            text,
            encoders,
            rows: Arc::clone(&self.rows),
            account: Arc::clone(&self.account),
            is_numbered: self.is_numbered(),
            threads: self.resources.threads,
        })
    }

    pub(crate) fn answer_tail(&mut self, tail: &AnswerTail) -> Result<()> {
        for column in [INPUT_IDS, LABELS] {
            require("answer_tail", &self.schema(), column)?;
        }
        let tokenize =
            self.pipeline.tokenize_step().ok_or_else(|| DataError::pipeline("`answer_tail` needs `tokenize`"))?;
        let (tokenizer, path) = self.load(tokenize)?;
        self.add(AnswerTailStage {
            tail: tail.clone(),
            ids: tail.ids(&tokenizer, &path)?,
            sequence_len: self.pipeline.pack_step().map_or(usize::MAX, |pack| pack.sequence_len),
            input: self.schema(),
            account: Arc::clone(&self.account),
            threads: self.resources.threads,
        })
    }

    pub(crate) fn pack(&mut self, step: &Pack) -> Result<()> {
        for column in [INPUT_IDS, LABELS] {
            require("pack", &self.schema(), column)?;
        }
        let tokenize = self.pipeline.tokenize_step().ok_or_else(|| DataError::pipeline("`pack` needs `tokenize`"))?;
        let (tokenizer, path) = self.load(tokenize)?;
        let special = tokenizer.special();
        let pad = special.pad.as_ref().or(special.eos.as_ref()).ok_or(DataError::NoPadding { path })?;
        let pad_id = signed(pad.id);
        self.pad_id = Some(pad_id);
        self.add(PackStage {
            step: step.clone(),
            pad_id,
            vocab_size: tokenizer.len(),
            rows: Arc::clone(&self.rows),
            account: Arc::clone(&self.account),
            resume: Arc::clone(&self.resume),
            notes: Arc::clone(&self.notes),
            packed: Arc::clone(&self.packed),
        })
    }

    /// The tokenizer of a tokenize step, loaded once.
    fn load(&mut self, step: &Tokenize) -> Result<(Arc<Tokenizer>, PathBuf)> {
        let path = match step.tokenizer.to_str().filter(|path| remote::is_remote(path)) {
            Some(address) => PathBuf::from(address),
            None => self.pipeline.resolve(&step.tokenizer),
        };
        let tokenizer = match &self.tokenizer {
            Some(tokenizer) => Arc::clone(tokenizer),
            None => {
                let mut tokenizer = match path.to_str().filter(|path| remote::is_remote(path)) {
                    Some(address) => Tokenizer::load(&remote::tokenizer(address, &self.pipeline.remote)?)?,
                    None => Tokenizer::load(&path)?,
                };
                for (role, text) in &step.special_tokens {
                    tokenizer.set_special(role, text)?;
                }
                Arc::new(tokenizer)
            }
        };
        self.tokenizer = Some(Arc::clone(&tokenizer));
        Ok((tokenizer, path))
    }
}
