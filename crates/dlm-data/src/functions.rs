//! SQL functions of our own: content hashes, sample and shuffle keys, the side of the validation split.

use crate::{
    shuffle::keyed,
    step::{Shuffle, Split},
};
use datafusion::{
    arrow::{
        array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, UInt64Array},
        datatypes::{DataType, Field, Int32Type, Int64Type},
        row::{Row, RowConverter, SortField},
    },
    error::{DataFusionError, Result},
    logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf},
};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// 128 bits for each row that equal values of the same types share and different ones do not.
pub(crate) fn content_hashes(columns: &[ArrayRef]) -> Result<Vec<u128>> {
    let fields = columns.iter().map(|column| SortField::new(column.data_type().clone())).collect();
    let rows = RowConverter::new(fields)?.convert_columns(columns)?;
    let hash = |row: Row| {
        let hash = Sha256::digest(row.data());
        u128::from_le_bytes(hash[..16].try_into().expect("a SHA-256 has 32 bytes"))
    };
    Ok(rows.iter().map(hash).collect())
}

/// `sample_key(a, b, ...)`: a number that depends on the values and the seed alone.
pub(crate) fn sample_key(types: Vec<DataType>, seed: u64) -> ScalarUDF {
    let key = move |columns: &[ColumnarValue]| -> Result<ColumnarValue> {
        let columns = ColumnarValue::values_to_arrays(columns)?;
        let hashes = content_hashes(&columns)?;
        let key = |hash: u128| keyed(seed, hash as u64); // 64 of its bits are random enough
        Ok(ColumnarValue::Array(Arc::new(UInt64Array::from_iter_values(hashes.into_iter().map(key)))))
    };
    create_udf(&format!("sample_key_{seed}"), types, DataType::UInt64, Volatility::Immutable, Arc::new(key))
}

/// `shuffle_key(row)`: a number whose order is random and depends on the seed.
pub(crate) fn shuffle_key(shuffle: &Shuffle) -> ScalarUDF {
    let seed = shuffle.seed;
    let key = move |columns: &[ColumnarValue]| -> Result<ColumnarValue> {
        let columns = ColumnarValue::values_to_arrays(columns)?;
        let rows: &Int64Array = first(&columns)?.as_primitive::<Int64Type>();
        let keys: UInt64Array = rows.unary(|row| keyed(seed, row.cast_unsigned()));
        Ok(ColumnarValue::Array(Arc::new(keys)))
    };
    create_udf(
        &format!("shuffle_key_{seed}"),
        vec![DataType::Int64],
        DataType::UInt64,
        Volatility::Immutable,
        Arc::new(key),
    )
}

/// `is_validation(input_ids)`: true for the documents of the validation side.
pub(crate) fn is_validation(split: &Split) -> ScalarUDF {
    let Split { validation, seed } = *split;
    let side = move |columns: &[ColumnarValue]| -> Result<ColumnarValue> {
        let columns = ColumnarValue::values_to_arrays(columns)?;
        let documents = first(&columns)?.as_list::<i32>();
        let sides = (0..documents.len()).map(|i| {
            let ids = documents.value(i);
            Some(stands_in_validation(ids.as_primitive::<Int32Type>().values(), validation, seed))
        });
        Ok(ColumnarValue::Array(Arc::new(sides.collect::<BooleanArray>())))
    };
    create_udf(
        &format!("is_validation_{validation}_{seed}"),
        vec![DataType::List(Arc::new(Field::new("item", DataType::Int32, false)))],
        DataType::Boolean,
        Volatility::Immutable,
        Arc::new(side),
    )
}

/// Whether the hash of these tokens falls into the validation share.
fn stands_in_validation(ids: &[i32], share: f64, seed: u64) -> bool {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
    let bytes = <[u8; 8]>::try_from(&hash.finalize()[..8]).expect("a SHA-256 has 32 bytes");
    // 53 bits, so that the number in [0, 1) is exact.
    let number = (u64::from_le_bytes(bytes) >> 11) as f64 / (1u64 << 53) as f64;
    number < share
}

fn first(columns: &[ArrayRef]) -> Result<&ArrayRef> {
    columns.first().ok_or_else(|| DataFusionError::Internal("a function was called without its argument".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_validation_is_the_one_asked_for_and_depends_on_the_seed() {
        let side = |seed| (0..4000).map(|i| stands_in_validation(&[i, 1], 0.1, seed)).collect::<Vec<_>>();
        let count = side(0).iter().filter(|side| **side).count();
        assert!((340..460).contains(&count), "{count}"); // three standard deviations of 400
        assert_ne!(side(0), side(1));
        assert_eq!(side(1), side(1));
    }
}
