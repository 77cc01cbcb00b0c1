//! `ModelCard`: the README.md of a model folder, as hubs show it.

use crate::Model;

/// What a model folder says of itself to people.
///
/// ```
/// use dlm_model::{DiffusionInfo, LoadOptions, Model, ModelCard, ModelConfig};
///
/// let mut model = Model::from_config(ModelConfig::preset("tiny", 100)?, 1, &LoadOptions::default())?;
/// model.set_diffusion(DiffusionInfo::new(99, false))?;
/// let card = ModelCard::new("my-model").with_fact("optimiser steps", 1000);
/// let text = card.render(&model);
/// assert!(text.contains("# my-model") && text.contains("| mask token | 99 |") && text.contains("| optimiser steps | 1000 |"));
/// assert!(ModelCard::is_generated(&text));
/// # Ok::<(), dlm_model::ModelError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelCard {
    name: String,
    base_model: Option<String>,
    facts: Vec<(String, String)>,
}

/// What the first lines of a card hold that was written here; a card without it is a person's and is left alone.
const MARK: &str = "library_name: transformers\ntags:\n- dlm\n";

impl ModelCard {
    /// The file's name.
    pub const FILE: &'static str = "README.md";

    /// A card for a model of that name.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), base_model: None, facts: Vec::new() }
    }

    /// Names the model that this one began as.
    #[must_use]
    pub fn with_base_model(mut self, base_model: impl Into<String>) -> Self {
        self.base_model = Some(base_model.into());
        self
    }

    /// Adds a line to the training summary.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "numbers and texts are given as they are")]
    pub fn with_fact(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        self.facts.push((name.into(), value.to_string()));
        self
    }

    /// Whether a card was written by [`render`](Self::render) and may be replaced.
    #[must_use]
    pub fn is_generated(text: &str) -> bool {
        text.starts_with(&format!("---\n{MARK}"))
    }

    /// The card as Markdown with a YAML head.
    #[must_use]
    pub fn render(&self, model: &Model) -> String {
        let config = model.config();
        let mut text = format!("---\n{MARK}- masked-diffusion\npipeline_tag: text-generation\n");
        // A path of this machine means nothing to others; a hub knows names of one or two parts.
        if let Some(base) = self.base_model.as_deref().filter(|base| is_hub_name(base)) {
            text += &format!("base_model: {base}\n");
        }
        text += &format!(
            "---\n\n# {}\n\nA masked-diffusion language model: it turns mask tokens into text, in any order.\n\n",
            self.name
        );
        text += "```sh\ndlm chat --model .\n```\n\n";
        let mut facts = vec![
            ("architecture".to_owned(), format!("{} ({})", config.family.architecture, config.family.name)),
            ("parameters".to_owned(), model.parameter_count().to_string()),
            ("longest text".to_owned(), format!("{} tokens", config.max_seq_len())),
        ];
        if let Some(id) = model.mask_token_id() {
            facts.push(("mask token".to_owned(), id.to_string()));
        }
        let shift = if config.logits_shift() { "the state before it" } else { "its own state" };
        facts.push(("a token is predicted from".to_owned(), shift.to_owned()));
        if let Some(info) = model.diffusion() {
            facts.push(("noise schedule".to_owned(), info.noise_schedule.clone()));
        }
        text += &table("model", &facts);
        if !self.facts.is_empty() {
            text += &format!("\n## Training\n\n{}", table("run", &self.facts));
        }
        text
    }
}

fn is_hub_name(name: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    let parts: Vec<&str> = name.split('/').collect();
    parts.len() == 2 && parts.iter().all(|part| plain(part) && !part.starts_with('.'))
}

fn table(title: &str, facts: &[(String, String)]) -> String {
    let mut text = format!("| {title} | |\n|---|---|\n");
    for (name, value) in facts {
        let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
        text += &format!("| {} | {} |\n", cell(name), cell(value));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DiffusionInfo, LoadOptions, ModelConfig};
    use serde_json::json;
    use std::path::Path;

    #[test]
    fn only_names_of_a_hub_are_given_as_its_base_model() {
        assert!(is_hub_name("HuggingFaceTB/SmolLM2-135M"));
        for path in ["models/a/b", "/data/model", "../model", "model", "a b/c"] {
            assert!(!is_hub_name(path), "{path}");
        }
    }

    #[test]
    fn a_card_tells_the_facts_of_its_model() {
        let mut object = ModelConfig::preset("tiny", 100).unwrap().to_json();
        object.insert("rope_scaling".to_owned(), json!({ "type": "dynamic", "factor": 2.0 }));
        let config = ModelConfig::from_json(object, Path::new("config.json")).unwrap();
        let mut model = Model::from_config(config, 1, &LoadOptions::default()).unwrap();
        let card = ModelCard::new("mine").with_base_model("OWNER/NAME").with_fact("seed", 7);
        let plain = card.render(&model);
        assert!(!plain.contains("| mask token |") && !plain.contains("| noise schedule |"), "{plain}");
        let info = DiffusionInfo { noise_schedule: "cosine".to_owned(), ..DiffusionInfo::new(42, false) };
        model.set_diffusion(info).unwrap();
        let text = card.render(&model);
        for fact in [
            "base_model: OWNER/NAME".to_owned(),
            "# mine".to_owned(),
            "| architecture | LlamaForCausalLM (llama) |".to_owned(),
            format!("| parameters | {} |", model.parameter_count()),
            "| longest text | 4096 tokens |".to_owned(),
            "| mask token | 42 |".to_owned(),
            "| a token is predicted from | its own state |".to_owned(),
            "| noise schedule | cosine |".to_owned(),
            "| seed | 7 |".to_owned(),
        ] {
            assert!(text.contains(&fact), "{fact} is not in {text}");
        }
        assert!(plain.contains("| a token is predicted from | the state before it |"));
    }

    #[test]
    fn a_cell_cannot_break_its_table() {
        assert_eq!(table("run", &[("a|b".to_owned(), "c\nd".to_owned())]), "| run | |\n|---|---|\n| a\\|b | c d |\n");
    }
}
