//! Reading a tokenizer from a model folder, and what is written beside a model.

use crate::{
    chat_template::ChatTemplate,
    encode::Spellings,
    error::{Result, TokenizerError},
    special::{SpecialTokens, class_defaults, declared, wrong},
    tokenizer::Tokenizer,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
};
use tokenizers::AddedToken;

pub(crate) const TOKENIZER_FILE: &str = "tokenizer.json";
const CONFIG_FILE: &str = "tokenizer_config.json";
const MAP_FILE: &str = "special_tokens_map.json";
const TEMPLATE_FILE: &str = "chat_template.jinja";
const TEMPLATE_FOLDER: &str = "chat_templates";

/// The parts of `tokenizer.json` that name special tokens.
#[derive(Deserialize)]
struct Header {
    padding: Option<Padding>,
    model: Option<ModelHeader>,
}

#[derive(Deserialize)]
struct Padding {
    pad_token: Option<String>,
}

#[derive(Deserialize)]
struct ModelHeader {
    unk_token: Option<String>,
    unk_id: Option<u32>,
    dropout: Option<f64>,
}

impl Tokenizer {
    /// Reads the tokenizer of a model folder, or a `tokenizer.json` with the files beside it.
    ///
    /// `tokenizer.json` gives the tokens; `tokenizer_config.json` and `special_tokens_map.json` say which of them are special,
    /// and where they do not, `config.json`; `chat_template.jinja`, `chat_templates/*.jinja` or the configuration give the chat
    /// templates. Tokens that the configuration declares and the vocabulary lacks are added, as transformers does.
    ///
    /// # Errors
    /// [`TokenizerError::Missing`] without a `tokenizer.json`, and one that names the file for each that cannot be read.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = if path.is_dir() { path.join(TOKENIZER_FILE) } else { path.to_owned() };
        let folder = file.parent().unwrap_or(Path::new("")).to_owned();
        let json = read(&file)?.ok_or_else(|| TokenizerError::Missing { path: path.to_owned() })?;
        let config = read_object(&folder.join(CONFIG_FILE))?;
        let map = read_object(&folder.join(MAP_FILE))?;
        let mut tokenizer = Self::parse(json, &file)?;
        tokenizer.read_templates(&folder, config.as_ref())?;
        tokenizer.config = config;
        tokenizer.map = map;
        let model = read_object(&folder.join("config.json"))?.unwrap_or_default();
        tokenizer.resolve_specials(&file, &model)?;
        Ok(tokenizer)
    }

    /// The files to save beside a model, by name, so that this crate and transformers' `AutoTokenizer` load the same tokenizer.
    ///
    /// `tokenizer.json`; `tokenizer_config.json` and `special_tokens_map.json` if there were any, or if there is now something
    /// to say in them; the chat templates that were files. What was read comes back as it was, with the mask token in it.
    ///
    /// # Errors
    /// [`TokenizerError::Invalid`] when a file cannot be written down as JSON.
    pub fn files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = vec![(TOKENIZER_FILE.to_owned(), self.json.clone().into_bytes())];
        for (name, object) in [(CONFIG_FILE, &self.config), (MAP_FILE, &self.map)] {
            if let Some(object) = object {
                files.push((name.to_owned(), (pretty(object, Path::new(name))? + "\n").into_bytes()));
            }
        }
        let templates = self.template_files.iter();
        files.extend(templates.map(|(name, source)| (name.clone(), source.clone().into_bytes())));
        Ok(files)
    }

    /// Writes [`files`](Self::files) into a folder, each whole or not at all.
    ///
    /// # Errors
    /// [`TokenizerError::Write`] with the path that could not be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        for (name, content) in self.files()? {
            dlm_files::write(&folder.join(name), &content)?;
        }
        Ok(())
    }

    /// A tokenizer from the text of a `tokenizer.json`, which knows of no special tokens yet.
    pub(crate) fn parse(json: String, path: &Path) -> Result<Self> {
        let header: Header = parse_json(&json, path)?; // for its line and column, too: the library reports neither
        if let Some(dropout) = header.model.and_then(|model| model.dropout).filter(|&dropout| dropout != 0.0) {
            return Err(TokenizerError::Dropout { path: path.to_owned(), dropout });
        }
        let invalid = |source| TokenizerError::Invalid { path: path.to_owned(), source };
        let mut inner = tokenizers::Tokenizer::from_bytes(&json).map_err(invalid)?;
        inner.with_truncation(None).map_err(invalid)?;
        inner.with_padding(None);
        Ok(Self {
            inner,
            json,
            config: None,
            map: None,
            template_files: Vec::new(),
            templates: Vec::new(),
            special: SpecialTokens::default(),
            spellings: Spellings::default(),
            fast: OnceLock::new(),
        })
    }

    /// Finds out which tokens are special, from the configuration or, without one, from `tokenizer.json` and `config.json`.
    pub(crate) fn resolve_specials(&mut self, file: &Path, model: &Map<String, Value>) -> Result<()> {
        if self.config.is_none() && self.map.is_none() {
            self.specials_of_model(file, model)?;
        } else {
            self.specials_of_config(file, model)?;
        }
        self.refresh_spellings();
        Ok(())
    }

    fn specials_of_config(&mut self, file: &Path, model: &Map<String, Value>) -> Result<()> {
        let path = file.with_file_name(if self.config.is_some() { CONFIG_FILE } else { MAP_FILE });
        let config = self.config.clone().unwrap_or_default();
        let declared = declared(&path, &config, self.map.as_ref())?;
        let named = declared.named.iter().map(|(_, token)| token.clone().special(true));
        let added = declared.added.iter().cloned();
        self.add_declared(file, added.chain(named).chain(declared.additional.iter().cloned()))?;

        for (role, token) in &declared.named {
            *self.special.role_mut(role).expect("`declared` gives roles") = Some(self.special_token(&token.content)?);
        }
        for token in &declared.additional {
            self.special.additional.push(self.special_token(&token.content)?);
        }
        // Where the configuration leaves a role out, the tokenizer's class or its padding may fill it.
        let class = config.get("tokenizer_class").and_then(Value::as_str);
        let defaults = class_defaults(class, model.get("model_type").and_then(Value::as_str));
        let padding = parse_json::<Header>(&self.json, file)?.padding.and_then(|padding| padding.pad_token);
        let defaults = padding.iter().map(|token| ("pad", token.as_str())).chain(defaults.iter().copied());
        for (role, text) in defaults {
            let said = config.contains_key(&format!("{role}_token"));
            let token = self.special_token(text).ok();
            let place = self.special.role_mut(role).expect("defaults are for roles");
            if !said && place.is_none() {
                *place = token;
            }
        }
        Ok(())
    }

    fn specials_of_model(&mut self, file: &Path, model: &Map<String, Value>) -> Result<()> {
        for role in ["bos", "eos", "pad"] {
            let key = format!("{role}_token_id");
            let path = file.with_file_name("config.json");
            let id = match model.get(&key) {
                None | Some(Value::Null) => None,
                Some(Value::Array(ids)) => ids.first(), // several may end a text: the first is the one to write
                Some(id) => Some(id),
            };
            let Some(found) = id else { continue };
            let id = found.as_i64().ok_or_else(|| wrong(&path, &key, found, "a token id or a list of them"))?;
            // Some configurations say -1 for none, or name a padding row of the embedding.
            let text = u32::try_from(id).ok().and_then(|id| self.id_to_token(id));
            let token = text.map(|text| self.special_token(&text)).transpose()?;
            *self.special.role_mut(role).expect("a role") = token;
        }
        if let Some(header) = parse_json::<Header>(&self.json, file)?.model {
            let text = header.unk_token.or_else(|| self.id_to_token(header.unk_id?));
            self.special.unk = text.and_then(|text| self.special_token(&text).ok());
        }
        let mut flagged: Vec<(u32, String)> = Vec::new();
        for (id, token) in self.inner.get_added_vocabulary().get_added_tokens_decoder() {
            if token.special {
                flagged.push((*id, token.content.clone()));
            }
        }
        flagged.sort_unstable();
        for (_, text) in flagged {
            self.special.additional.push(self.special_token(&text)?);
        }
        Ok(())
    }

    /// Adds those of `tokens` that are not added tokens yet.
    fn add_declared(&mut self, file: &Path, tokens: impl Iterator<Item = AddedToken>) -> Result<()> {
        let mut new: Vec<AddedToken> = Vec::new();
        for token in tokens {
            let known = self.inner.get_added_vocabulary().get_vocab().contains_key(&token.content);
            if !known && !new.iter().any(|other| other.content == token.content) {
                new.push(token);
            }
        }
        self.add_tokens(new, file)
    }

    /// Adds tokens to the vocabulary and to `tokenizer.json`; one that is there takes the new flags and keeps its id.
    pub(crate) fn add_tokens(&mut self, tokens: Vec<AddedToken>, file: &Path) -> Result<()> {
        if tokens.is_empty() {
            return Ok(());
        }
        let invalid = |source| TokenizerError::Invalid { path: file.to_owned(), source };
        self.inner.add_tokens(tokens.iter().cloned()).map_err(invalid)?;
        let mut tree: Value = parse_json(&self.json, file)?;
        let object = tree.as_object_mut().ok_or_else(|| invalid("it is no object".into()))?;
        let list = object.entry("added_tokens").or_insert_with(|| json!([]));
        let list = list.as_array_mut().ok_or_else(|| invalid("`added_tokens` is no list".into()))?;
        for token in tokens {
            let mut entry = json!({ "id": self.id_of(&token.content)? });
            let fields = serde_json::to_value(&token).map_err(|source| invalid(source.into()))?;
            if let (Some(entry), Value::Object(fields)) = (entry.as_object_mut(), fields) {
                entry.extend(fields);
            }
            list.retain(|other| other["content"] != entry["content"]);
            list.push(entry);
        }
        list.sort_by_key(|entry| entry["id"].as_u64());
        self.json = pretty(object, file)?;
        self.fast = OnceLock::new();
        Ok(())
    }

    fn read_templates(&mut self, folder: &Path, config: Option<&Map<String, Value>>) -> Result<()> {
        if let Some(source) = read(&folder.join(TEMPLATE_FILE))? {
            self.template_files.push((TEMPLATE_FILE.to_owned(), source.clone()));
            self.add_template("default", &folder.join(TEMPLATE_FILE).display().to_string(), source);
        }
        for path in jinja_files(&folder.join(TEMPLATE_FOLDER))? {
            let (Some(name), Some(source)) = (path.file_stem().and_then(|name| name.to_str()), read(&path)?) else {
                continue;
            };
            self.template_files.push((format!("{TEMPLATE_FOLDER}/{name}.jinja"), source.clone()));
            self.add_template(name, &path.display().to_string(), source);
        }
        if !self.templates.is_empty() {
            return Ok(()); // files take precedence over the configuration, as in transformers
        }
        let path = folder.join(CONFIG_FILE);
        match config.and_then(|config| config.get("chat_template")) {
            None | Some(Value::Null) => {}
            Some(Value::String(source)) => {
                self.add_template("default", &path.display().to_string(), source.clone());
            }
            Some(Value::Array(list)) => {
                for entry in list {
                    let field = |name: &str| entry.get(name).and_then(Value::as_str);
                    let (Some(name), Some(source)) = (field("name"), field("template")) else {
                        return Err(wrong(&path, "chat_template", entry, "a `name` with its `template`"));
                    };
                    self.add_template(name, &format!("{} ({name})", path.display()), source.to_owned());
                }
            }
            Some(other) => return Err(wrong(&path, "chat_template", other, "a template, or a list of named ones")),
        }
        Ok(())
    }

    fn add_template(&mut self, name: &str, shown: &str, source: String) {
        self.templates.push((name.to_owned(), ChatTemplate::deferred(shown, source)));
    }
}

/// A file's text; `None` when there is no such file.
fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(source) => Err(TokenizerError::Read { path: path.to_owned(), source }),
    }
}

fn read_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    read(path)?.map(|text| parse_json(&text, path)).transpose()
}

fn jinja_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(TokenizerError::Read { path: folder.to_owned(), source }),
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(|source| TokenizerError::Read { path: folder.to_owned(), source })?.path());
    }
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jinja"));
    paths.sort();
    Ok(paths)
}

fn parse_json<'a, T: Deserialize<'a>>(text: &'a str, path: &Path) -> Result<T> {
    serde_json::from_str(text).map_err(|error| {
        let message = error.to_string();
        let end = message.rfind(" at line ").unwrap_or(message.len()); // said apart
        TokenizerError::Json {
            path: path.to_owned(),
            line: error.line(),
            column: error.column(),
            message: message[..end].to_owned(),
        }
    })
}

fn pretty(object: &Map<String, Value>, path: &Path) -> Result<String> {
    let invalid = |error: serde_json::Error| TokenizerError::Invalid { path: path.to_owned(), source: error.into() };
    serde_json::to_string_pretty(object).map_err(invalid)
}
