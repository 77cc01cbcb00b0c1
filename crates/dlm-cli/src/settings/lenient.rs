//! Values read the way people write them: numbers in quotes, `yes` and `no`, lists with commas.
//!
//! YAML 1.1 and environment variables hand over `2e-4` and `no` as text. Each kind of value here says what it takes, and
//! what it expected when it is given something else.

use super::choices::Bf16;
use dlm_diffusion::BlockLengths;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error, IntoDeserializer, SeqAccess, Unexpected, Visitor},
};
use std::{fmt, marker::PhantomData};

/// A scalar as some source spelt it.
pub(crate) enum Raw<'a> {
    Bool(bool),
    Whole(i128),
    Float(f64),
    Text(&'a str),
}

/// A kind of value: how it is read, and how to name it in an error.
pub(crate) trait Kind {
    type Value;
    /// Completes "expected ...".
    const EXPECTED: &'static str;
    /// The value, or `None` when `raw` is not of this kind.
    fn read(raw: &Raw<'_>) -> Option<Self::Value>;
}

/// Reads a value that has to be there: `#[serde(deserialize_with = "one::<Count, _>")]`.
pub(crate) fn one<'de, K: Kind, D: Deserializer<'de>>(deserializer: D) -> Result<K::Value, D::Error> {
    deserializer.deserialize_any(Scalar::<K>(PhantomData))
}

/// Reads a value that may be unset: nothing, an empty text and `null` are `None`.
pub(crate) fn optional<'de, K: Kind, D: Deserializer<'de>>(deserializer: D) -> Result<Option<K::Value>, D::Error> {
    deserializer.deserialize_option(Optional::<K>(PhantomData))
}

/// Reads one of an enum's names, and never the number of a variant.
pub(crate) fn choice<'de, T: DeserializeOwned, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    struct Choice<T>(PhantomData<T>);
    impl<T: DeserializeOwned> Visitor<'_> for Choice<T> {
        type Value = T;
        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a name")
        }
        fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
            T::deserialize(text.trim().into_deserializer())
        }
    }
    deserializer.deserialize_any(Choice(PhantomData))
}

/// Reads one of an enum's names, or nothing.
pub(crate) fn optional_choice<'de, T: DeserializeOwned, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let name = optional::<Text, _>(deserializer)?;
    name.map(|name| T::deserialize(name.trim().into_deserializer())).transpose()
}

/// Reads a list of texts, one text with commas, or nothing, which is no text.
pub(crate) fn optional_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct OptionalList;
    impl<'de> Visitor<'de> for OptionalList {
        type Value = Vec<String>;
        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a list of texts")
        }
        fn visit_none<E: Error>(self) -> Result<Vec<String>, E> {
            Ok(Vec::new())
        }
        fn visit_unit<E: Error>(self) -> Result<Vec<String>, E> {
            Ok(Vec::new())
        }
        fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<String>, D::Error> {
            list(deserializer)
        }
    }
    deserializer.deserialize_option(OptionalList)
}

/// Reads a list of texts, or one text with commas.
pub(crate) fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct List;
    impl<'de> Visitor<'de> for List {
        type Value = Vec<String>;
        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a list of texts")
        }
        fn visit_str<E: Error>(self, text: &str) -> Result<Vec<String>, E> {
            Ok(text.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect())
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<String>, A::Error> {
            struct Item(String);
            impl<'de> Deserialize<'de> for Item {
                fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                    one::<Text, _>(deserializer).map(Item)
                }
            }
            let mut items = Vec::new();
            while let Some(Item(item)) = seq.next_element()? {
                items.push(item);
            }
            Ok(items)
        }
    }
    deserializer.deserialize_any(List)
}

struct Scalar<K>(PhantomData<K>);

impl<K: Kind> Scalar<K> {
    fn read<E: Error>(raw: &Raw<'_>) -> Result<K::Value, E> {
        K::read(raw).ok_or_else(|| {
            let found = match *raw {
                Raw::Bool(value) => Unexpected::Bool(value),
                Raw::Whole(value) => i64::try_from(value).map_or(Unexpected::Float(value as f64), Unexpected::Signed),
                Raw::Float(value) => Unexpected::Float(value),
                Raw::Text(value) => Unexpected::Str(value),
            };
            E::invalid_value(found, &K::EXPECTED)
        })
    }
}

impl<K: Kind> Visitor<'_> for Scalar<K> {
    type Value = K::Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(K::EXPECTED)
    }
    fn visit_bool<E: Error>(self, value: bool) -> Result<K::Value, E> {
        Self::read(&Raw::Bool(value))
    }
    fn visit_i64<E: Error>(self, value: i64) -> Result<K::Value, E> {
        Self::read(&Raw::Whole(value.into()))
    }
    fn visit_u64<E: Error>(self, value: u64) -> Result<K::Value, E> {
        Self::read(&Raw::Whole(value.into()))
    }
    fn visit_f64<E: Error>(self, value: f64) -> Result<K::Value, E> {
        Self::read(&Raw::Float(value))
    }
    fn visit_str<E: Error>(self, value: &str) -> Result<K::Value, E> {
        Self::read(&Raw::Text(value))
    }
}

struct Optional<K>(PhantomData<K>);

impl<'de, K: Kind> Visitor<'de> for Optional<K> {
    type Value = Option<K::Value>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(K::EXPECTED)
    }
    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        one::<Unset<K>, D>(deserializer)
    }
}

/// A kind whose empty texts mean that nothing is set.
struct Unset<K>(PhantomData<K>);

impl<K: Kind> Kind for Unset<K> {
    type Value = Option<K::Value>;
    const EXPECTED: &'static str = K::EXPECTED;
    fn read(raw: &Raw<'_>) -> Option<Self::Value> {
        match raw {
            Raw::Text(text) if matches!(text.trim(), "" | "null") => Some(None),
            raw => K::read(raw).map(Some),
        }
    }
}

fn whole(raw: &Raw<'_>) -> Option<i128> {
    match *raw {
        Raw::Bool(_) => None,
        Raw::Whole(value) => Some(value),
        Raw::Float(value) => (value.fract() == 0.0 && value.abs() < 2f64.powi(63)).then_some(value as i128),
        Raw::Text(text) => {
            let text = text.trim();
            text.parse().ok().or_else(|| whole(&Raw::Float(text.parse().ok()?)))
        }
    }
}

fn number(raw: &Raw<'_>) -> Option<f64> {
    let value = match *raw {
        Raw::Bool(_) => return None,
        Raw::Whole(value) => value as f64,
        Raw::Float(value) => value,
        Raw::Text(text) => text.trim().parse().ok()?,
    };
    value.is_finite().then_some(value)
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident: $value:ty, $expected:literal, $read:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $name;
        impl Kind for $name {
            type Value = $value;
            const EXPECTED: &'static str = $expected;
            fn read(raw: &Raw<'_>) -> Option<$value> {
                let read: fn(&Raw<'_>) -> Option<$value> = $read;
                read(raw)
            }
        }
    )*};
}

kinds! {
    /// How many of something that cannot be none.
    Count: u64, "a whole number of at least 1", |raw| u64::try_from(whole(raw)?).ok().filter(|&value| value >= 1);
    /// A whole number from zero.
    Whole: u64, "a whole number of at least 0", |raw| u64::try_from(whole(raw)?).ok();
    /// The id of a token.
    TokenId: u32, "a token id: a whole number of at least 0", |raw| u32::try_from(whole(raw)?).ok();
    /// A share of a whole.
    Fraction: f64, "a number from 0 to 1", |raw| number(raw).filter(|value| (0.0..=1.0).contains(value));
    /// A share that leaves something over.
    ProperFraction: f64, "a number from 0 to below 1", |raw| number(raw).filter(|value| (0.0..1.0).contains(value));
    /// A number that is not negative.
    Rate: f64, "a number of at least 0", |raw| number(raw).filter(|&value| value >= 0.0);
    /// A number above zero.
    Positive: f64, "a number above 0", |raw| number(raw).filter(|&value| value > 0.0);
    /// Lengths of blocks over the steps of a run.
    Blocks: BlockLengths, "a length of blocks, or step:length pairs such as `0:1, 500:32`", |raw| match *raw {
        Raw::Text(text) => text.parse().ok(),
        _ => BlockLengths::constant(i64::try_from(whole(raw)?).ok()?).ok(),
    };
    /// Yes or no.
    Switch: bool, "true or false", |raw| match *raw {
        Raw::Bool(value) => Some(value),
        Raw::Whole(0) => Some(false),
        Raw::Whole(1) => Some(true),
        Raw::Text(text) => match text.trim().to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "y" | "t" | "1" => Some(true),
            "false" | "no" | "off" | "n" | "f" | "0" => Some(false),
            _ => None,
        },
        Raw::Whole(_) | Raw::Float(_) => None,
    };
    /// Whether something is in bfloat16.
    Bf16Switch: Bf16, "true, false or `auto`", |raw| match raw {
        Raw::Text(text) if text.trim().eq_ignore_ascii_case("auto") => Some(Bf16::Auto),
        raw => Switch::read(raw).map(|on| if on { Bf16::On } else { Bf16::Off }),
    };
    /// Where tensors live.
    Device: String, "`auto`, `cpu`, `cuda` or `cuda:N`", |raw| match *raw {
        Raw::Text(text) => {
            let index = text.strip_prefix("cuda:").is_some_and(|index| index.parse::<u8>().is_ok());
            (index || matches!(text, "auto" | "cpu" | "cuda")).then(|| text.to_owned())
        }
        Raw::Bool(_) | Raw::Whole(_) | Raw::Float(_) => None,
    };
    /// Any text; a bare number is taken as written.
    Text: String, "text", |raw| Some(match *raw {
        Raw::Bool(value) => value.to_string(),
        Raw::Whole(value) => value.to_string(),
        Raw::Float(value) => value.to_string(),
        Raw::Text(text) => text.to_owned(),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_from_quotes_but_not_from_booleans() {
        assert_eq!(Rate::read(&Raw::Text(" 2e-4 ")), Some(2e-4));
        assert_eq!(Count::read(&Raw::Text("64")), Some(64));
        assert_eq!(Count::read(&Raw::Float(64.0)), Some(64));
        assert_eq!(Count::read(&Raw::Float(6.5)), None);
        assert_eq!(Count::read(&Raw::Whole(0)), None);
        assert_eq!(Count::read(&Raw::Bool(true)), None);
        assert_eq!(Rate::read(&Raw::Text("NaN")), None);
        assert_eq!(Fraction::read(&Raw::Float(1.5)), None);
    }

    #[test]
    fn switches_take_the_words_of_yaml() {
        for (text, expected) in [("no", false), ("On", true), ("0", false), ("YES", true)] {
            assert_eq!(Switch::read(&Raw::Text(text)), Some(expected), "{text}");
        }
        assert_eq!(Switch::read(&Raw::Text("perhaps")), None);
    }
}
