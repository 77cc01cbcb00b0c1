//! The value of `dataset_prepared_path`: one folder, or several that are mixed.

use super::lenient::{Kind, Positive, Text, one};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, SeqAccess, Unexpected, Visitor},
};
use std::fmt;

/// Folders of prepared data.
///
/// Written as one text, or as a list of texts and of tables with `path` and `weight`. Without weights an epoch has every row of
/// every folder once; with weights, which then all of them have, as many rows of each as its weight says.
#[derive(Debug, Clone, PartialEq)]
pub struct PreparedPaths(pub Vec<PreparedPath>);

/// A folder of prepared data, see [`PreparedPaths`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PreparedPath {
    /// The folder.
    pub path: String,
    /// Its share of an epoch's rows, relative to the other weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
}

impl Serialize for PreparedPaths {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0[..] {
            [PreparedPath { path, weight: None }] => serializer.serialize_str(path),
            paths if paths.iter().all(|path| path.weight.is_none()) => {
                serializer.collect_seq(paths.iter().map(|path| &path.path))
            }
            paths => serializer.collect_seq(paths),
        }
    }
}

const EXPECTED: &str =
    "a folder, or a list of folders and of tables with `path` and `weight`, all of them with a weight or none";

const TABLE: &str = "a folder, or a table with `path` and `weight`";

/// Reads folders; nothing and an empty text are none.
pub(super) fn prepared_paths<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PreparedPaths>, D::Error> {
    struct Paths;
    impl<'de> Visitor<'de> for Paths {
        type Value = Option<PreparedPaths>;
        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str(EXPECTED)
        }
        fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
        fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
            deserializer.deserialize_any(self)
        }
        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            let path = PreparedPath { path: text.to_owned(), weight: None };
            Ok((!matches!(text.trim(), "" | "null")).then(|| PreparedPaths(vec![path])))
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut paths: Vec<PreparedPath> = Vec::new();
            while let Some(Item(path)) = seq.next_element()? {
                paths.push(path);
            }
            let weighted = paths.iter().filter(|path| path.weight.is_some()).count();
            if weighted > 0 && weighted < paths.len() {
                return Err(A::Error::invalid_value(Unexpected::Seq, &EXPECTED));
            }
            Ok((!paths.is_empty()).then_some(PreparedPaths(paths)))
        }
    }
    deserializer.deserialize_option(Paths)
}

struct Item(PreparedPath);

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Folder;
        impl<'de> Visitor<'de> for Folder {
            type Value = Item;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(TABLE)
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Item, E> {
                Ok(Item(PreparedPath { path: text.to_owned(), weight: None }))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Item, A::Error> {
                let wrong = |found: &str| A::Error::invalid_value(Unexpected::Other(found), &TABLE);
                let (mut path, mut weight) = (None, None);
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "path" => path = Some(map.next_value::<OfKind<Text>>()?.0),
                        "weight" => weight = Some(map.next_value::<OfKind<Positive>>()?.0),
                        other => return Err(wrong(&format!("a table with `{other}`"))),
                    }
                }
                let path = path.ok_or_else(|| wrong("a table without `path`"))?;
                Ok(Item(PreparedPath { path, weight }))
            }
        }
        deserializer.deserialize_any(Folder)
    }
}

/// A value of a table, read as leniently as any setting.
struct OfKind<K: Kind>(K::Value);

impl<'de, K: Kind> Deserialize<'de> for OfKind<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        one::<K, _>(deserializer).map(Self)
    }
}
