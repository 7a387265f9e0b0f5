//! The candle engine on the shipped weights: parity with another program, independence of neighbours, refusals.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use candle_core::{Device, Tensor};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use sluice::batching::encode_all;
use sluice::encoder::{Adapter, BertConfig, CandleEncoder, Encoder, EncoderError, LowRank, PackedBatch};
use sluice::text::{TokenizedText, Tokenizer, normalize};

/// What the contract asks for. Rounding the weights to float16 costs 1.3e-6 of it on these texts.
const MIN_COSINE: f32 = 0.9999;
/// The same sums in another order of blocks; the contract allows 1e-4.
const BATCH_TOLERANCE: f32 = 1e-5;

static ENCODER: LazyLock<CandleEncoder> = LazyLock::new(|| {
    CandleEncoder::load(&read("models/encoders/minilm-l6-v2/config.json"), &read("models/encoders/minilm-l6-v2/model.safetensors"))
        .unwrap()
});
static TOKENIZER: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::from_bytes(&read("models/encoders/minilm-l6-v2/tokenizer.json"), 256, 1).unwrap());

fn path(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}

fn read(relative: &str) -> Vec<u8> {
    std::fs::read(path(relative)).unwrap()
}

/// The values of one string field, a line each.
fn field(jsonl: &str, name: &str) -> Vec<String> {
    let text = String::from_utf8(read(jsonl)).unwrap();
    text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()[name].as_str().unwrap().to_owned()).collect()
}

fn tokenize(texts: &[String]) -> Vec<TokenizedText> {
    texts.iter().map(|text| TOKENIZER.tokenize(&normalize(text)).unwrap()).collect()
}

fn encode_texts(tokenized: &[TokenizedText], max_batch_tokens: usize) -> Vec<Vec<f32>> {
    let sequences: Vec<&[u32]> = tokenized.iter().map(|text| text.windows[0].as_slice()).collect();
    encode_all(&mut ENCODER.clone(), &sequences, max_batch_tokens).unwrap()
}

fn cosine(left: &[f32], right: &[f32]) -> f32 {
    left.iter().zip(right).map(|(left, right)| left * right).sum()
}

#[test]
fn embeddings_agree_with_sentence_transformers() {
    let texts = field("tests/fixtures/encoder/texts.jsonl", "text");
    let bytes = read("tests/fixtures/encoder/embeddings.safetensors");
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    let expected: Vec<f32> =
        reference.tensor("embeddings").unwrap().data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
    let n_tokens: Vec<i32> =
        reference.tensor("n_tokens").unwrap().data().as_chunks().0.iter().map(|&b| i32::from_le_bytes(b)).collect();
    assert_eq!((texts.len(), expected.len(), n_tokens.len()), (50, 50 * 384, 50));

    let tokenized = tokenize(&texts);
    let found = encode_texts(&tokenized, 256);
    for (row_idx, text) in texts.iter().enumerate() {
        assert_eq!(normalize(text).as_str(), text, "the fixture holds normalised texts");
        assert_eq!(tokenized[row_idx].count.total, n_tokens[row_idx] as usize, "{text}");
        let cosine = cosine(&found[row_idx], &expected[row_idx * 384..][..384]);
        assert!(cosine >= MIN_COSINE, "cosine {cosine} for {text}");
    }
}

#[test]
fn an_embedding_is_the_same_alone_and_in_any_company() {
    // Every 80th narrative of every part: short and long, five languages.
    let texts: Vec<String> = (1..=10)
        .flat_map(|part| field(&format!("training-data/narratives/part-{part}.jsonl"), "narrative").into_iter().step_by(80))
        .collect();
    let tokenized = tokenize(&texts);
    let alone = encode_texts(&tokenized, 0);

    let mut order: Vec<usize> = (0..texts.len()).collect();
    for (max_batch_tokens, stride) in [(128, 1), (512, 37), (4_096, 11)] {
        // Another order each time, hence other neighbours.
        order.sort_by_key(|idx| (idx * stride) % 97);
        let shuffled: Vec<TokenizedText> = order.iter().map(|&idx| tokenized[idx].clone()).collect();
        let together = encode_texts(&shuffled, max_batch_tokens);
        for (&idx, embedding) in order.iter().zip(&together) {
            for (alone, together) in alone[idx].iter().zip(embedding) {
                assert!((alone - together).abs() <= BATCH_TOLERANCE, "batch of {max_batch_tokens}: {}", texts[idx]);
            }
        }
    }
}

#[test]
fn engines_on_several_threads_give_the_same_bits() {
    let tokenized = tokenize(&field("tests/fixtures/encoder/texts.jsonl", "text")[..6]);
    let expected = encode_texts(&tokenized, 256);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(|| encode_texts(&tokenized, 256))).collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), expected);
        }
    });
}

#[test]
fn every_row_is_normalised() {
    let sequences: Vec<Vec<u32>> = vec![vec![101, 102], vec![7; 512], (0..300).collect(), vec![30_521]];
    let batch = PackedBatch::from_sequences(sequences.iter().map(Vec::as_slice)).unwrap();
    let embeddings = ENCODER.clone().encode(&batch).unwrap();
    assert_eq!((embeddings.n(), embeddings.hidden_size(), ENCODER.max_sequence_tokens()), (4, 384, 512));
    for row in embeddings.rows() {
        assert!((cosine(row, row) - 1.0).abs() < 1e-5);
    }
}

#[test]
fn batches_that_the_model_cannot_take_are_refused() {
    #[track_caller]
    fn check(sequences: &[&[u32]], is_expected: fn(&EncoderError) -> bool) {
        let encoded = PackedBatch::from_sequences(sequences.iter().copied()).and_then(|batch| ENCODER.clone().encode(&batch));
        let error = encoded.unwrap_err();
        assert!(is_expected(&error), "{error:?}");
    }

    check(&[], |error| matches!(error, EncoderError::EmptyBatch));
    check(&[&[101, 102], &[]], |error| matches!(error, EncoderError::EmptySequence { sequence_idx: 1 }));
    check(&[&[101, 30_522]], |error| matches!(error, EncoderError::UnknownToken { token_id: 30_522, vocab_size: 30_522 }));
    check(&[&[101, u32::MAX]], |error| matches!(error, EncoderError::UnknownToken { token_id: u32::MAX, .. }));
    check(&[&[101], &[7; 513]], |error| {
        matches!(error, EncoderError::SequenceTooLong { sequence_idx: 1, n_tokens: 513, max_tokens: 512 })
    });
}

/// A BERT so small that a test can write it: every weight is `weight`, LayerNorm scales included.
fn tiny(weight: f32) -> (Value, HashMap<String, Tensor>) {
    let config = json!({
        "model_type": "bert", "vocab_size": 11, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 6, "hidden_act": "gelu", "max_position_embeddings": 5, "type_vocab_size": 2, "layer_norm_eps": 1e-12
    });
    let layer = "encoder.layer.0";
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        ("embeddings.word_embeddings.weight".to_owned(), vec![11, 4]),
        ("embeddings.position_embeddings.weight".to_owned(), vec![5, 4]),
        ("embeddings.token_type_embeddings.weight".to_owned(), vec![2, 4]),
    ];
    for norm in ["embeddings.LayerNorm", &format!("{layer}.attention.output.LayerNorm"), &format!("{layer}.output.LayerNorm")] {
        shapes.extend(["weight", "bias"].map(|part| (format!("{norm}.{part}"), vec![4])));
    }
    for (linear, n_in, n_out) in [
        ("attention.self.query", 4, 4),
        ("attention.self.key", 4, 4),
        ("attention.self.value", 4, 4),
        ("attention.output.dense", 4, 4),
        ("intermediate.dense", 4, 6),
        ("output.dense", 6, 4),
    ] {
        shapes.push((format!("{layer}.{linear}.weight"), vec![n_out, n_in]));
        shapes.push((format!("{layer}.{linear}.bias"), vec![n_out]));
    }
    let tensors = shapes.into_iter().map(|(name, shape)| (name, Tensor::full(weight, shape, &Device::Cpu).unwrap())).collect();
    (config, tensors)
}

fn load(config: &Value, tensors: &HashMap<String, Tensor>) -> Result<CandleEncoder, EncoderError> {
    let weights = safetensors::serialize(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), None).unwrap();
    CandleEncoder::load(config.to_string().as_bytes(), &weights)
}

/// Factors of the last `n_layers` blocks, small enough not to swamp the weights.
fn adapter(encoder: &CandleEncoder, n_layers: usize, rank: usize) -> Adapter {
    let factor = |shape: (usize, usize)| Tensor::randn(0.0_f32, 0.1, shape, &Device::Cpu).unwrap();
    let layer = |_| encoder.layer_shapes().map(|(n_in, n_out)| LowRank { a: factor((n_in, rank)), b: factor((rank, n_out)) });
    Adapter::new(encoder.config().num_hidden_layers - n_layers, (0..n_layers).map(layer).collect())
}

#[test]
fn a_merged_adapter_serves_what_was_trained() {
    let batch =
        PackedBatch::from_sequences([&[101, 2460, 4060, 102][..], &[101, 3460, 102], &[101, 2003, 2009, 5151, 102]]).unwrap();
    let plain = ENCODER.clone().encode(&batch).unwrap();
    for n_layers in [1, 6] {
        let adapter = adapter(&ENCODER, n_layers, 8);
        let weights = ENCODER.adapted_weights(&adapter).unwrap();
        let hidden_states = ENCODER.hidden_states(&batch, adapter.first_layer()).unwrap();
        let trained = ENCODER.embed_adapted(&hidden_states, &batch.cu_seqlens().into(), &adapter, &weights).unwrap();
        let trained = trained.to_vec2::<f32>().unwrap();

        let stored = Adapter::from_safetensors(&adapter.to_safetensors().unwrap()).unwrap();
        assert_eq!(stored.first_layer(), 6 - n_layers);
        let mut merged = ENCODER.clone();
        merged.merge(&stored).unwrap();
        let served = merged.encode(&batch).unwrap();
        for ((trained, served), plain) in trained.iter().zip(served.rows()).zip(plain.rows()) {
            // Storing rounds the factors to half precision.
            assert!(cosine(trained, served) > 0.9999, "{}", cosine(trained, served));
            assert!(cosine(plain, served) < 0.99, "the adapter changes the encoder");
        }
    }
    // The clone that the others share is as it was.
    assert_eq!(ENCODER.clone().encode(&batch).unwrap(), plain);
}

#[test]
fn an_adapter_that_does_not_fit_is_refused() {
    let (config, tensors) = tiny(0.1);
    let mut other = load(&config, &tensors).unwrap();
    let whole = adapter(&other, 1, 2);
    assert!(other.merge(&whole).is_ok());
    assert!(matches!(other.merge(&adapter(&ENCODER, 1, 2)), Err(EncoderError::AdapterMismatch { .. })));
    let late = Adapter::new(1, whole.layers().to_vec());
    assert!(matches!(other.merge(&late), Err(EncoderError::AdapterMismatch { .. })));

    assert!(matches!(Adapter::from_safetensors(b"no safetensors"), Err(EncoderError::InvalidAdapter(_))));
    let stored = whole.to_safetensors().unwrap();
    let mut tensors = candle_core::safetensors::load_buffer(&stored, &Device::Cpu).unwrap();
    tensors.remove("layer.0.output.b").unwrap();
    let partial = safetensors::serialize(&tensors, None).unwrap();
    assert!(matches!(Adapter::from_safetensors(&partial), Err(EncoderError::InvalidAdapter(_))));
    tensors.insert("layer.0.output.b".to_owned(), Tensor::full(f32::INFINITY, (2, 4), &Device::Cpu).unwrap());
    let infinite = safetensors::serialize(&tensors, None).unwrap();
    assert!(matches!(Adapter::from_safetensors(&infinite), Err(EncoderError::NonFiniteWeight { .. })));
}

#[test]
fn an_output_without_a_direction_is_an_error() {
    #[track_caller]
    fn check(weight: f32, is_finite: bool) {
        let (config, tensors) = tiny(weight);
        let mut encoder = load(&config, &tensors).unwrap();
        let encoded = encoder.encode(&PackedBatch::from_sequences([&[1, 2][..]]).unwrap());
        match encoded {
            Ok(_) => assert!(is_finite, "weights of {weight:e}"),
            Err(error) => assert!(!is_finite && matches!(error, EncoderError::NonFinite { sequence_idx: 0 }), "{error:?}"),
        }
    }

    check(0.1, true);
    // All zero: the pooled output has no direction. Huge: attention scores overflow.
    check(0.0, false);
    check(1e30, false);
}

#[test]
fn files_that_do_not_fit_are_refused_at_load() {
    #[track_caller]
    fn check(change: impl FnOnce(&mut Value, &mut HashMap<String, Tensor>), is_expected: fn(&EncoderError) -> bool) {
        let (mut config, mut tensors) = tiny(0.1);
        change(&mut config, &mut tensors);
        let error = load(&config, &tensors).unwrap_err();
        assert!(is_expected(&error), "{error:?}");
    }
    let unsupported = |error: &EncoderError| matches!(error, EncoderError::UnsupportedConfig { .. });
    let invalid_weights = |error: &EncoderError| matches!(error, EncoderError::InvalidWeights(_));
    let query = "encoder.layer.0.attention.self.query.weight";

    check(|config, _| config["hidden_act"] = json!("relu"), unsupported);
    check(|config, _| config["model_type"] = json!("roberta"), unsupported);
    check(|config, _| config["position_embedding_type"] = json!("relative_key"), unsupported);
    check(|config, _| config["num_attention_heads"] = json!(3), unsupported);
    check(|config, _| config["num_attention_heads"] = json!(0), unsupported);
    check(|config, _| config["hidden_size"] = Value::Null, |error| matches!(error, EncoderError::InvalidConfig(_)));
    check(|config, _| config["vocab_size"] = json!(12), invalid_weights);
    check(|config, _| config["num_hidden_layers"] = json!(2), invalid_weights);
    check(|_, tensors| drop(tensors.remove(query)), invalid_weights);
    check(
        |_, tensors| drop(tensors.insert(query.to_owned(), Tensor::full(f32::NAN, (4, 4), &Device::Cpu).unwrap())),
        |error| matches!(error, EncoderError::NonFiniteWeight { name } if name == "encoder.layer.0.attention.self.query.weight"),
    );
    assert!(matches!(CandleEncoder::load(b"{}", b""), Err(EncoderError::InvalidConfig(_))));
    let (config, _) = tiny(0.1);
    assert!(matches!(CandleEncoder::load(config.to_string().as_bytes(), b"not safetensors"), Err(EncoderError::InvalidWeights(_))));
    assert_eq!(BertConfig::from_json(config.to_string().as_bytes()).unwrap().position_embedding_type, "absolute");
}
