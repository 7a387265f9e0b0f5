//! The tokenizer of the shipped encoder, alone and behind its threads.

use std::sync::LazyLock;

use sluice::text::{ReadText, TextConfig, TextError, TokenCount, Tokenizer, normalize, spawn};

const CLS: u32 = 101;
const SEP: u32 = 102;
const UNK: u32 = 100;

static TOKENIZER_JSON: LazyLock<Vec<u8>> =
    LazyLock::new(|| std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/models/encoders/minilm-l6-v2/tokenizer.json")).unwrap());

fn tokenizer(max_tokens: usize) -> Tokenizer {
    Tokenizer::from_bytes(&TOKENIZER_JSON, max_tokens, 16).unwrap()
}

#[test]
fn a_text_stands_between_two_special_tokens_without_padding() {
    #[track_caller]
    fn check(narrative: &str, expected: &[u32]) {
        let tokenized = tokenizer(256).tokenize(&normalize(narrative)).unwrap();
        assert_eq!(tokenized.windows, [expected], "{narrative}");
        assert_eq!(tokenized.count, TokenCount { total: expected.len(), used: expected.len() });
    }

    // The ids are those of `BertTokenizer` in transformers 5.24.0 for the same vocabulary.
    check("Line 2 short pick, found 28 of 40", &[CLS, 2240, 1016, 2460, 4060, 1010, 2179, 2654, 1997, 2871, SEP]);
    check("", &[CLS, SEP]);
    check("\u{200b} \u{202e}", &[CLS, SEP]);
    check(&"z".repeat(200), &[CLS, UNK, SEP]);
}

#[test]
fn a_long_text_comes_in_windows_and_the_count_tells_what_is_lost() {
    #[track_caller]
    fn check(n_words: usize, max_tokens: usize, n_windows: usize, expected: TokenCount) {
        let tokenized = tokenizer(max_tokens).tokenize(&normalize(&"pick ".repeat(n_words))).unwrap();
        assert_eq!(tokenized.count, expected);
        assert_eq!(tokenized.windows.len(), n_windows);
        for window in &tokenized.windows {
            assert!(window.len() <= max_tokens && window.len() > 2);
            assert_eq!((window[0], window[window.len() - 1]), (CLS, SEP));
            assert!(window[1..window.len() - 1].iter().all(|&id| id == 4060));
        }
    }

    check(253, 256, 1, TokenCount { total: 255, used: 255 });
    check(254, 256, 1, TokenCount { total: 256, used: 256 });
    check(255, 256, 2, TokenCount { total: 257, used: 257 });
    check(254 + 222, 256, 2, TokenCount { total: 478, used: 478 });
    check(254 + 223, 256, 3, TokenCount { total: 479, used: 479 });
    // Sixteen windows: 254 tokens and 15 steps of 222.
    check(6_400, 256, 16, TokenCount { total: 6_402, used: 254 + 15 * 222 + 2 });
    check(2, 3, 2, TokenCount { total: 4, used: 4 });
}

#[test]
fn windows_cover_a_text_without_a_hole() {
    let narrative: String = (0..900).map(|n| format!("{n} ")).collect();
    let whole = &tokenizer(100_000).tokenize(&normalize(&narrative)).unwrap().windows[0];
    let cut = tokenizer(128).tokenize(&normalize(&narrative)).unwrap();
    let mut joined = vec![CLS];
    for (idx, window) in cut.windows.iter().enumerate() {
        let inner = &window[1..window.len() - 1];
        // Neighbours share a quarter of the small window.
        joined.extend(&inner[if idx == 0 { 0 } else { 126 / 4 }..]);
    }
    joined.push(SEP);
    assert_eq!(&joined, whole);
}

#[test]
fn the_control_tokens_of_the_model_cannot_be_typed() {
    for typed in ["[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]"] {
        let tokenized = tokenizer(256).tokenize(&normalize(&format!("late {typed} truck"))).unwrap();
        let window = &tokenized.windows[0];
        let inner = &window[1..window.len() - 1];
        assert!(inner.iter().all(|id| !matches!(id, 0 | 100..=103)), "{typed} became {inner:?}");
        assert_eq!((inner[0], inner[inner.len() - 1]), (2397, 4744));
    }
}

#[tokio::test]
async fn the_longest_texts_of_any_script_come_through() {
    let handle = spawn(tokenizer(256), &TextConfig { workers: 2, queue_capacity: 4 }, usize::MAX).unwrap();
    let shapes =
        ["a", "short pick ", "数", "!", "\u{1f69a}", "e\u{301}", "\u{fdfa}", "\u{0}", "\u{202e}x ", "aaaaaaaaaaaaaaaaaaa.", "ß "];
    let calls: Vec<_> = shapes
        .iter()
        .map(|shape| {
            let narrative: String = shape.chars().cycle().take(32_000).collect();
            let handle = handle.clone();
            tokio::spawn(async move { handle.tokenize(narrative, None).await })
        })
        .collect();
    for (call, shape) in calls.into_iter().zip(shapes) {
        let tokenized = call.await.unwrap().unwrap().tokens;
        // Sixteen windows: 254 tokens, 15 steps of 222, and the two special ones.
        assert_eq!(tokenized.count.used, tokenized.count.total.min(254 + 15 * 222 + 2), "{shape:?}");
    }
}

#[tokio::test]
async fn the_threads_give_what_the_tokenizer_gives() {
    let handle = spawn(tokenizer(16), &TextConfig::default(), usize::MAX).unwrap();
    for narrative in ["truck late", "Größe falsch, Ware nass", &"pick ".repeat(100)] {
        let text = normalize(narrative);
        let tokens = tokenizer(16).tokenize(&text).unwrap();
        assert_eq!(handle.tokenize(narrative.to_owned(), None).await.unwrap(), ReadText { text, tokens });
    }
}

#[test]
fn files_that_would_mislead_are_refused() {
    #[track_caller]
    fn check(tokenizer_json: &[u8], max_tokens: usize, is_expected: fn(&TextError) -> bool) {
        let error = Tokenizer::from_bytes(tokenizer_json, max_tokens, 16).unwrap_err();
        assert!(is_expected(&error), "{error:?}");
    }

    let mut without_template: serde_json::Value = serde_json::from_slice(&TOKENIZER_JSON).unwrap();
    without_template["post_processor"] = serde_json::Value::Null;
    let without_template = serde_json::to_vec(&without_template).unwrap();

    check(b"{", 256, |error| matches!(error, TextError::InvalidTokenizer(_)));
    check(&without_template, 256, |error| matches!(error, TextError::UnsupportedTokenizer { n_tokens: 0 }));
    assert!(matches!(Tokenizer::from_bytes(&TOKENIZER_JSON, 256, 0), Err(TextError::NoWindows)));
    check(&TOKENIZER_JSON, 2, |error| matches!(error, TextError::MaxTokensTooSmall { max_tokens: 2 }));
}
