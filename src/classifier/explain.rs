//! What carried a classification: each part of the text is left out in turn, and the fall of the answer is the part's weight.
//!
//! Occlusion asks the very model that answered, lexical features and encoder together, and needs nothing of their insides. At most
//! [`MAX_SEGMENTS`] parts keep its cost under ten plain answers. Pure: `decision` runs the shortened texts through the models.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::calibration::logit;
use super::{Candidate, Classification};
use crate::text::NormalizedText;

/// Parts that a text is cut into at most.
pub const MAX_SEGMENTS: usize = 8;

/// From so many sentences on, sentences are the parts; below, groups of words are.
const MIN_SENTENCES: usize = 3;

/// Which parts of the narrative carried the best type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// The type that is explained: the best candidate, also where the answer abstains.
    pub r#type: String,
    /// In the order of the text. Together they are the narrative as the models saw it: normalised, white space collapsed.
    pub segments: Vec<Segment>,
}

/// One part of the narrative.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Segment {
    pub text: String,
    /// How much the log-odds of the type fall without this part; negative where the part speaks against the type.
    pub weight: f64,
}

impl Explanation {
    /// Weighs each segment. `without[i]` is the classification of the text that lacks `segments[i]`.
    pub fn of(
        classification: &Classification,
        text: &NormalizedText,
        segments: &[Range<usize>],
        without: &[Classification],
    ) -> Option<Self> {
        let Candidate { r#type, score } = classification.candidates.first()?;
        let weigh = |(range, without): (&Range<usize>, &Classification)| {
            let candidate = without.candidates.iter().find(|candidate| candidate.r#type == *r#type)?;
            let weight = logit(*score) - logit(candidate.score);
            Some(Segment { text: text.as_str()[range.clone()].to_owned(), weight })
        };
        let segments = segments.iter().zip(without).map(weigh).collect::<Option<_>>()?;
        Some(Self { r#type: r#type.clone(), segments })
    }
}

/// The byte ranges of a text's parts, in order, without the spaces between them: sentences where there are several, else words or
/// groups of words. Empty for an empty text.
pub fn segments(text: &NormalizedText) -> Vec<Range<usize>> {
    let text = text.as_str();
    let words = split(text, |_| true);
    let sentences = split(text, |end| text[..end].ends_with(['.', '!', '?', ';']));
    merged(if sentences.len() >= MIN_SENTENCES { sentences } else { words })
}

/// The text without one of its parts.
pub fn without(text: &NormalizedText, segment: &Range<usize>) -> String {
    format!("{} {}", &text.as_str()[..segment.start], &text.as_str()[segment.end..])
}

/// Cuts at every space before which `ends_here` says so of the byte position.
fn split(text: &str, ends_here: impl Fn(usize) -> bool) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut start = 0;
    for (space, _) in text.match_indices(' ') {
        if ends_here(space) {
            ranges.push(start..space);
            start = space + 1;
        }
    }
    if start < text.len() {
        ranges.push(start..text.len());
    }
    ranges
}

/// Joins neighbours, evenly by number, until there are at most [`MAX_SEGMENTS`].
fn merged(ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    let n = ranges.len();
    let n_segments = n.min(MAX_SEGMENTS);
    (0..n_segments).map(|idx| ranges[idx * n / n_segments].start..ranges[(idx + 1) * n / n_segments - 1].end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::normalize;

    #[test]
    fn sentences_or_words_cover_the_text_in_order() {
        #[track_caller]
        fn check(narrative: &str, expected: &[&str]) {
            let text = normalize(narrative);
            let ranges = segments(&text);
            let parts: Vec<&str> = ranges.iter().map(|range| &text.as_str()[range.clone()]).collect();
            assert_eq!(parts, expected);
            assert_eq!(parts.join(" "), text.as_str());
        }

        check("", &[]);
        check("short", &["short"]);
        check("short pick, line 2", &["short", "pick,", "line", "2"]);
        check("One is done. Two is not! Is three? Größe", &["One is done.", "Two is not!", "Is three?", "Größe"]);
        check("a b c d e f g h i j", &["a", "b", "c", "d e", "f", "g", "h", "i j"]);
        let many = (0..40).map(|n| format!("Nr {n} is late.")).collect::<Vec<_>>().join(" ");
        assert_eq!(segments(&normalize(&many)).len(), MAX_SEGMENTS);
    }

    #[test]
    fn a_part_left_out_leaves_the_rest() {
        let text = normalize("One is done. Two is not! Is three?");
        let parts: Vec<String> =
            segments(&text).iter().map(|range| normalize(&without(&text, range)).as_str().to_owned()).collect();
        assert_eq!(parts, ["Two is not! Is three?", "One is done. Is three?", "One is done. Two is not!"]);
    }
}
