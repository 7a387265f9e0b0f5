//! One form for every narrative, so that what is invisible to a reader is invisible to the models too.
//!
//! Invisible characters are dropped, compatibility forms folded (NFKC), runs of white space become one space. Case, punctuation
//! and accents stay: tokenizer and lexical features decide about those. It refuses to look at meaning.

use std::sync::Arc;

use unicode_normalization::UnicodeNormalization;

/// A narrative in the one form that tokenizer and lexical features see: NFKC, no zero-width or bidi controls, single spaces.
/// Only [`normalize`] makes one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NormalizedText(Arc<str>);

impl NormalizedText {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Normalises a narrative; normalising again changes nothing.
///
/// Dropped are the default-ignorable characters (zero-width, bidi controls, variation selectors, soft hyphen, tags, fillers) and
/// the C0 and C1 controls that are not white space. The information separators U+001C to U+001F stand between the fields of
/// machine-made messages and count as white space. The rest is put into NFKC (Unicode Standard Annex 15).
pub fn normalize(narrative: &str) -> NormalizedText {
    normalize_within(narrative, usize::MAX).expect("no text has more characters than there are")
}

/// As [`normalize`], where the result has at most `max_chars` characters; `None` where it would have more. It stops there, because
/// one character may unfold into eighteen.
pub fn normalize_within(narrative: &str, max_chars: usize) -> Option<NormalizedText> {
    // Dropping comes first: a joiner between a letter and its accent would otherwise keep the two from composing.
    let visible = narrative.chars().filter(|&character| !is_invisible(character));
    let mut text = String::with_capacity(narrative.len());
    // A space is written only once a visible character follows it, which collapses runs and trims both ends.
    let mut space_pending = false;
    let mut n_chars = 0_usize;
    for character in visible.nfkc() {
        if is_white_space(character) {
            space_pending = !text.is_empty();
        } else {
            if std::mem::take(&mut space_pending) {
                text.push(' ');
                n_chars += 1;
            }
            text.push(character);
            n_chars += 1;
            if n_chars > max_chars {
                return None;
            }
        }
    }
    Some(NormalizedText(text.into()))
}

fn is_white_space(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\u{1c}'..='\u{1f}')
}

/// Controls that are not white space, and `Default_Ignorable_Code_Point` (Unicode 16, `DerivedCoreProperties.txt`) together with
/// the interlinear annotation marks.
fn is_invisible(character: char) -> bool {
    (character.is_control() && !is_white_space(character))
        || matches!(character,
            '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_reader_cannot_see_is_dropped_or_a_space() {
        #[track_caller]
        fn check(narrative: &str, expected: &str) {
            assert_eq!(normalize(narrative).as_str(), expected, "{narrative:?}");
        }

        check("", "");
        check(" \t\r\n ", "");
        check("\u{200b}\u{feff}", "");
        check("  short   pick\n\nline 2 ", "short pick line 2");
        check("trans\u{200b}port dam\u{ad}age", "transport damage");
        check("\u{202e}sdoog\u{202c} damaged", "sdoog damaged");
        check("zero\u{0}byte, bell\u{7}, nel\u{85}line", "zerobyte, bell, nel line");
        check("B13A\u{1d}SHORT\u{1e}QTY", "B13A SHORT QTY");
        check("\u{ff26}\u{ff55}\u{ff4c}\u{ff4c} width \u{2460} \u{fb01}t \u{bd}", "Full width 1 fit 1\u{2044}2");
        check("non\u{a0}breaking\u{2003}em\u{3000}ideographic\u{2028}line", "non breaking em ideographic line");
        check("cafe\u{301} and cafe\u{200d}\u{301}", "caf\u{e9} and caf\u{e9}");
        check("warning \u{26a0}\u{fe0f} sign", "warning \u{26a0} sign");
        check("Größe, 数量不足, нехватка", "Größe, 数量不足, нехватка");
    }

    #[test]
    fn the_bound_counts_what_comes_out() {
        #[track_caller]
        fn check(narrative: &str, max_chars: usize, expected: Option<&str>) {
            let text = normalize_within(narrative, max_chars);
            assert_eq!(text.as_ref().map(NormalizedText::as_str), expected, "{narrative:?} within {max_chars}");
        }

        check("  a   b  ", 3, Some("a b"));
        check("  a   b  ", 2, None);
        check("\u{200b}\u{200b}\u{200b}ab", 2, Some("ab"));
        check("\u{fb01}", 1, None);
        check("\u{fdfa}", 17, None);
        check("\u{fdfa}", 18, Some(normalize("\u{fdfa}").as_str()));
    }

    #[test]
    fn no_character_turns_into_an_invisible_one() {
        let offenders: Vec<char> = (char::MIN..=char::MAX)
            .filter(|character| {
                let text = normalize(&format!("a{character}b"));
                text.as_str().chars().any(|c| is_invisible(c) || (c != ' ' && is_white_space(c)))
            })
            .collect();
        assert_eq!(offenders, Vec::<char>::new());
    }

    #[test]
    fn every_single_character_is_stable_after_one_pass() {
        let offenders: Vec<char> = (char::MIN..=char::MAX)
            .filter(|character| {
                let once = normalize(&format!("a{character}\u{301}b"));
                normalize(once.as_str()) != once
            })
            .collect();
        assert_eq!(offenders, Vec::<char>::new());
    }

    proptest! {
        #[test]
        fn normalising_again_changes_nothing(narrative in any::<String>()) {
            let once = normalize(&narrative);
            prop_assert_eq!(normalize(once.as_str()), once);
        }

        #[test]
        fn the_result_is_nfkc_with_single_inner_spaces(narrative in "[a-e\u{300}-\u{310}\u{1100}-\u{1180} \t\u{85}\u{200b}-\u{200f}\u{2000}-\u{2010}\u{fb00}-\u{fb06}]{0,40}") {
            let text = normalize(&narrative);
            let text = text.as_str();
            prop_assert!(unicode_normalization::is_nfkc(text));
            prop_assert!(!text.contains("  ") && text.trim() == text);
            prop_assert!(text.chars().all(|c| !is_invisible(c) && (c == ' ' || !is_white_space(c))));
        }
    }
}
