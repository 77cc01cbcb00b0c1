//! Chat templates that come with this crate, for tokenizers without one of their own.

use crate::chat_template::ChatTemplate;

/// Name and source.
const BUILT_IN: [(&str, &str); 6] = [
    ("alpaca", include_str!("templates/alpaca.jinja")),
    ("chatml", include_str!("templates/chatml.jinja")),
    ("gemma", include_str!("templates/gemma.jinja")),
    ("llama3", include_str!("templates/llama3.jinja")),
    ("mistral_v1", include_str!("templates/mistral_v1.jinja")),
    ("phi_3", include_str!("templates/phi_3.jinja")),
];

impl ChatTemplate {
    /// The built-in template of that name.
    ///
    /// They know messages and nothing of tools. A tokenizer should have the tokens that a template writes: `<|im_start|>` and
    /// `<|im_end|>` for `chatml`, for example; without them their letters are learnt.
    ///
    /// ```
    /// use dlm_tokenizer::{ChatTemplate, Message, RenderOptions};
    ///
    /// let template = ChatTemplate::built_in("chatml").expect("it is one of ChatTemplate::built_in_names()");
    /// let text = template.render(&[Message::new("user", "Hello!")], &RenderOptions::default())?;
    /// assert_eq!(text, "<|im_start|>user\nHello!<|im_end|>\n");
    /// # Ok::<(), dlm_tokenizer::TokenizerError>(())
    /// ```
    #[must_use]
    pub fn built_in(name: &str) -> Option<Self> {
        BUILT_IN.iter().find(|(known, _)| *known == name).map(|(name, source)| Self::deferred(*name, *source))
    }

    /// The names of the built-in templates.
    pub fn built_in_names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(name, _)| *name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RenderOptions, message::Message};
    use serde_json::json;

    fn options() -> RenderOptions {
        let variables = json!({ "bos_token": "<s>", "eos_token": "</s>" });
        RenderOptions { variables: variables.as_object().unwrap().clone(), ..RenderOptions::default() }
    }

    fn render(name: &str, messages: &[Message], add_generation_prompt: bool) -> String {
        let options = RenderOptions { add_generation_prompt, ..options() };
        ChatTemplate::built_in(name).unwrap().render(messages, &options).unwrap()
    }

    #[test]
    fn every_template_writes_its_own_words() {
        let messages = [Message::new("user", "a "), Message::new("assistant", "b"), Message::new("user", "c")];
        let expected = [
            ("alpaca", "<s>### Instruction:\na \n\n### Response:\nb</s>\n\n### Instruction:\nc\n\n### Response:\n"),
            (
                "chatml",
                "<|im_start|>user\na <|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n",
            ),
            (
                "gemma",
                "<s><start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n<start_of_turn>user\nc<end_of_turn>\n<start_of_turn>model\n",
            ),
            (
                "llama3",
                "<s><|start_header_id|>user<|end_header_id|>\n\na<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nb<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nc<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            ),
            ("mistral_v1", "<s> [INST] a  [/INST] b</s> [INST] c [/INST]"),
            ("phi_3", "<|user|>\na <|end|>\n<|assistant|>\nb<|end|>\n<|user|>\nc<|end|>\n<|assistant|>\n"),
        ];
        assert!(expected.iter().map(|(name, _)| *name).eq(ChatTemplate::built_in_names()));
        for (name, expected) in expected {
            assert_eq!(render(name, &messages, true), expected, "{name}");
        }
    }

    #[test]
    fn parts_of_a_message_are_put_together() {
        let parts = json!([{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }]);
        let message = Message { content: parts, ..Message::new("user", "") };
        for name in ChatTemplate::built_in_names() {
            assert_eq!(
                render(name, std::slice::from_ref(&message), false),
                render(name, &[Message::new("user", "ab")], false)
            );
        }
    }

    #[test]
    fn roles_without_words_are_refused() {
        for name in ["alpaca", "gemma", "mistral_v1"] {
            let messages = [Message::new("user", "a"), Message::new("tool", "b")];
            let error = ChatTemplate::built_in(name).unwrap().render(&messages, &options()).unwrap_err();
            assert!(error.to_string().contains("tool"), "{error}");
        }
    }
}
