//! Giving a role to another of the tokenizer's tokens.

use crate::{
    error::{Result, TokenizerError},
    special::ROLES,
    tokenizer::Tokenizer,
};

impl Tokenizer {
    /// Makes the token of that text the one that begins, ends or fills texts, or stands for what cannot be spelled.
    ///
    /// `key` is as in `tokenizer_config.json`: `bos_token`, `eos_token`, `pad_token` or `unk_token`. The token is special from
    /// now on, and so is the one that had the role. [`files`](Self::files) records it.
    ///
    /// # Errors
    /// [`TokenizerError::UnknownRole`] for another key, [`TokenizerError::UnknownToken`] for a text that is no token.
    pub fn set_special(&mut self, key: &str, text: &str) -> Result<()> {
        let role = ROLES.iter().find(|(role, name)| *name == key && *role != "mask").map(|(role, _)| *role);
        let role = role.ok_or_else(|| TokenizerError::UnknownRole { key: key.to_owned() })?;
        let token = self.special_token(text)?;
        if self.special.role(role) == Some(&token) {
            return Ok(());
        }
        self.make_special(text)?;
        let before = self.special.role_mut(role).and_then(|slot| slot.replace(token.clone()));
        self.record_role(key, &token, before);
        self.refresh_spellings();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{TrainOptions, TrainSpecials};

    #[test]
    fn a_role_goes_to_another_token_and_is_kept_by_saving() {
        let specials = TrainSpecials { additional: vec!["<|im_end|>".to_owned()], ..TrainSpecials::default() };
        let options = TrainOptions { specials, ..TrainOptions::new(300) };
        let mut tokenizer = Tokenizer::train_bpe(["some text".to_owned()].into_iter(), &options).unwrap();
        let before = tokenizer.special().eos.clone().unwrap();
        tokenizer.set_special("eos_token", "<|im_end|>").unwrap();
        assert_eq!(tokenizer.special().eos.as_ref().unwrap().text, "<|im_end|>");
        assert!(tokenizer.special().ids().contains(&before.id));

        let folder = tempfile::tempdir().unwrap();
        tokenizer.save(folder.path()).unwrap();
        let again = Tokenizer::load(folder.path()).unwrap();
        assert_eq!(again.special().eos, tokenizer.special().eos);
        assert_eq!(again.special().ids(), tokenizer.special().ids());
    }

    #[test]
    fn a_text_that_is_no_token_and_a_key_that_is_no_role_are_refused() {
        let mut tokenizer =
            Tokenizer::train_bpe(["some text".to_owned()].into_iter(), &TrainOptions::new(300)).unwrap();
        let error = tokenizer.set_special("eos_token", "<|none|>").unwrap_err();
        assert!(matches!(error, TokenizerError::UnknownToken { .. }), "{error}");
        let error = tokenizer.set_special("sep_token", "a").unwrap_err();
        assert!(error.to_string().contains("`sep_token`"), "{error}");
    }
}
