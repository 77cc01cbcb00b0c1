//! Training a byte-level BPE tokenizer.

use dlm_tokenizer::{KeepSpecials, Specials, Tokenizer, TokenizerError, TrainOptions, TrainSpecials};

/// Texts with common and rare words and many equally frequent pairs, so that an unstable order would show.
fn corpus(n: u32) -> Vec<String> {
    let letter = |k: u32| char::from(b"etaoinshrdlucmfwypvbgkjqxz"[(k % 26).min(k / 7 % 26) as usize]);
    let word =
        |k: u32| -> String { (0..2 + k % 5).map(|i| letter(k.wrapping_mul(2_654_435_761) >> (4 * i))).collect() };
    let sentence = |n: u32| (0..12).map(|i| word((n * 37 + i * 11) % (1 + n * 5 % 701))).collect::<Vec<_>>().join(" ");
    (0..n).map(|n| format!("{}, {} 1{n}!\n", sentence(n), sentence(n + 1))).collect()
}

fn train(texts: Vec<String>, options: &TrainOptions) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::train_bpe(texts.into_iter(), options)
}

#[test]
fn equal_texts_give_equal_tokenizers_on_any_number_of_threads_and_in_any_order() {
    let options = TrainOptions::new(1200);
    let first = train(corpus(400), &options).unwrap();
    for threads in [1, 2, 3, 7] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let texts = corpus(400).into_iter().rev().collect();
        let again = pool.install(|| train(texts, &options)).unwrap();
        assert_eq!(again.files().unwrap(), first.files().unwrap(), "{threads} threads");
    }
}

#[test]
fn a_trained_tokenizer_spells_everything_and_has_its_special_tokens_first() {
    let tokenizer = train(corpus(400), &TrainOptions::new(500)).unwrap();
    assert_eq!(tokenizer.len(), 500);
    assert_eq!(tokenizer.base_vocab_size(), 500);
    let special = tokenizer.special();
    let id = |text: &str| tokenizer.token_to_id(text);
    assert_eq!((id("<|endoftext|>"), id("<|pad|>"), id("<|diffusion_mask|>")), (Some(0), Some(1), Some(2)));
    assert_eq!((special.bos.clone(), special.unk.clone()), (None, None));
    for (role, text) in [("eos", "<|endoftext|>"), ("pad", "<|pad|>"), ("mask", "<|diffusion_mask|>")] {
        assert_eq!(special.role(role).unwrap().text, text);
    }
    assert_eq!(tokenizer.find_mask_token(None, "<|diffusion_mask|>").unwrap().id, 2);
    let text = "Grüße, 世界 😀\0\r\n\t  1234<|endoftext|> \u{FDD0}";
    let ids = tokenizer.encode(text, Specials::AsText).unwrap();
    assert_eq!(tokenizer.decode(&ids, KeepSpecials::No).unwrap(), text);

    let folder = tempfile::tempdir().unwrap();
    tokenizer.save(folder.path()).unwrap();
    let again = Tokenizer::load(folder.path()).unwrap();
    assert_eq!(again.files().unwrap(), tokenizer.files().unwrap());
    assert_eq!(again.special(), tokenizer.special());
}

#[test]
fn little_text_gives_a_smaller_vocabulary_and_no_text_an_error() {
    let tokenizer = train(vec!["aaa".into(); 3], &TrainOptions::new(5000)).unwrap();
    assert!(tokenizer.len() < 270, "{}", tokenizer.len());
    for texts in [vec![], vec![String::new()]] {
        assert!(matches!(train(texts, &TrainOptions::new(5000)), Err(TokenizerError::NoText)));
    }
}

#[test]
fn special_tokens_and_bytes_must_fit_and_differ() {
    let options = TrainOptions::new(258);
    let error = train(corpus(5), &options).unwrap_err();
    assert_eq!(error.to_string(), "a vocabulary of 258 tokens is too small: 256 bytes and 3 special tokens need 259");
    assert!(train(corpus(5), &TrainOptions::new(259)).is_ok());

    let with = |specials| train(corpus(5), &TrainOptions { specials, ..TrainOptions::new(400) });
    let error = with(TrainSpecials { mask: "<|pad|>".into(), ..Default::default() }).unwrap_err();
    assert!(matches!(error, TokenizerError::BadSpecial { .. }), "{error}");
    let same = with(TrainSpecials { bos: Some("<|endoftext|>".into()), ..Default::default() }).unwrap();
    assert_eq!(same.special().bos, same.special().eos);

    let specials = TrainSpecials { mask: "mask".into(), ..Default::default() };
    let options = TrainOptions { specials, ..TrainOptions::new(400) };
    let error = train(vec!["mask\nmask on".into(); 9], &options).unwrap_err();
    assert!(matches!(error, TokenizerError::SpecialIsText { .. }), "{error}");
}
