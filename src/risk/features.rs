//! What a risk model sees of an event: a [`FeatureSchema`] read from `features.toml` and the [`FeatureVector`] it makes of the
//! facts. Training and serving share this code, so a column of the training table is what the server computes.
//!
//! A value the event does not give is NaN in the vector and named in `missing`. It refuses infinities, numbers an `f32` cannot
//! hold and attributes of another kind than the schema says. See [`super::sources`] for what a feature may be made of.

use serde::{Deserialize, Serialize};

use super::RiskError;
use super::sources::{FactKind, FactValue, Reader, Source};
use crate::event::Facts;

/// The form of `features.toml` this code reads.
const SCHEMA_VERSION: u32 = 1;

/// The ordered features of a risk model.
#[derive(Debug, Clone)]
pub struct FeatureSchema {
    features: Vec<Feature>,
    sources: Vec<Source>,
    /// Per feature, the sorted lower-case categories with their codes; empty for other kinds.
    codes: Vec<Vec<(String, f32)>>,
}

/// One feature: its name is the fact it is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    pub name: String,
    pub kind: FeatureKind,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub unit: String,
    /// Whether the model leans on it: such features are named first where they are missing.
    #[serde(default)]
    pub important: bool,
    /// Smallest value seen in training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f32>,
    /// Largest value seen in training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f32>,
    /// Of a categorical feature; the position is the code. Compared without case and surrounding white space.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub categories: Vec<String>,
}

/// How a feature's values become numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeatureKind {
    /// The number itself.
    Numeric,
    /// 0 or 1.
    Boolean,
    /// The code of the category; one that training did not see is missing, and reported.
    Categorical,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SchemaFile {
    version: u32,
    #[serde(rename = "feature")]
    features: Vec<Feature>,
}

impl FeatureSchema {
    /// Reads `features.toml`.
    ///
    /// # Errors
    /// [`RiskError::Schema`] for another form, no features, a name twice or outside the closed set, a kind the fact does not
    /// have, a category twice.
    pub fn parse(toml: &str) -> Result<Self, RiskError> {
        let file: SchemaFile = toml::from_str(toml).map_err(|error| RiskError::Schema { reason: error.to_string() })?;
        if file.version != SCHEMA_VERSION {
            return Err(RiskError::Schema { reason: format!("version {} is not {SCHEMA_VERSION}", file.version) });
        }
        Self::new(file.features)
    }

    /// A schema of these features in this order.
    ///
    /// # Errors
    /// As [`FeatureSchema::parse`].
    pub fn new(features: Vec<Feature>) -> Result<Self, RiskError> {
        let refuse = |reason: String| Err(RiskError::Schema { reason });
        if features.is_empty() {
            return refuse("there is no feature".to_owned());
        }
        let mut sources = Vec::with_capacity(features.len());
        let mut codes = Vec::with_capacity(features.len());
        for (feature_idx, feature) in features.iter().enumerate() {
            let name = &feature.name;
            if features[..feature_idx].iter().any(|earlier| earlier.name == *name) {
                return refuse(format!("`{name}` stands twice"));
            }
            let Some(source) = Source::by_name(name) else {
                return refuse(format!("`{name}` is no fact of an event; a fact of your own is `attributes.{name}`"));
            };
            if let Source::Fact(fact) = &source
                && FeatureKind::of(fact.kind) != feature.kind
            {
                return refuse(format!("`{name}` is a {:?} fact, which is not a {:?} feature", fact.kind, feature.kind));
            }
            if (feature.kind == FeatureKind::Categorical) == feature.categories.is_empty() {
                return refuse(format!("`{name}` must list categories if and only if it is categorical"));
            }
            let bounds = [feature.min, feature.max];
            if bounds.iter().flatten().any(|bound| !bound.is_finite())
                || feature.min.zip(feature.max).is_some_and(|(lo, hi)| lo > hi)
            {
                return refuse(format!("`{name}` has no finite range"));
            }
            let mut by_name: Vec<(String, f32)> =
                feature.categories.iter().enumerate().map(|(code, category)| (normalized(category), code as f32)).collect();
            by_name.sort_by(|a, b| a.0.cmp(&b.0));
            if by_name.windows(2).any(|pair| pair[0].0 == pair[1].0) {
                return refuse(format!("a category of `{name}` stands twice"));
            }
            sources.push(source);
            codes.push(by_name);
        }
        Ok(Self { features, sources, codes })
    }

    /// The text of `features.toml`.
    pub fn to_toml(&self) -> String {
        let file = SchemaFile { version: SCHEMA_VERSION, features: self.features.clone() };
        toml::to_string(&file).expect("a checked schema has only strings, numbers and lists")
    }

    pub fn features(&self) -> &[Feature] {
        &self.features
    }

    pub fn n_features(&self) -> usize {
        self.features.len()
    }

    pub fn feature_names(&self) -> Vec<String> {
        self.features.iter().map(|feature| feature.name.clone()).collect()
    }

    /// The code of a category of the feature at `feature_idx`; `None` where training did not see it.
    pub fn code(&self, feature_idx: usize, category: &str) -> Option<f32> {
        let codes = &self.codes[feature_idx];
        let category = normalized(category);
        codes.binary_search_by(|(known, _)| known.as_str().cmp(&category)).ok().map(|position| codes[position].1)
    }
}

impl FeatureKind {
    /// The feature kind that reads a fact of this kind.
    pub fn of(kind: FactKind) -> Self {
        match kind {
            FactKind::Number => Self::Numeric,
            FactKind::Flag => Self::Boolean,
            FactKind::Text => Self::Categorical,
        }
    }
}

/// One event as a row of numbers, in the order of its schema.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureVector {
    /// NaN where missing, else finite.
    pub values: Vec<f32>,
    /// Indices of features the event does not give.
    pub missing: Vec<usize>,
    /// Indices of features given outside what training saw: a number out of its range or an unknown category.
    pub out_of_range: Vec<usize>,
}

impl FeatureVector {
    /// The row of one event's facts.
    ///
    /// # Errors
    /// [`RiskError::NotFinite`] for a number that is infinite, NaN or beyond `f32`; [`RiskError::WrongKind`] for an attribute of
    /// another kind than the schema's.
    pub fn from_facts(schema: &FeatureSchema, facts: &Facts) -> Result<Self, RiskError> {
        let reader = Reader::new(facts);
        Self::from_values(schema, schema.sources.iter().map(|source| reader.read(source)))
    }

    /// The row of values that are at hand already, as from a table; one for each feature, in the schema's order.
    ///
    /// # Errors
    /// As [`FeatureVector::from_facts`].
    pub fn from_values<'a>(
        schema: &FeatureSchema,
        values: impl IntoIterator<Item = Option<FactValue<'a>>>,
    ) -> Result<Self, RiskError> {
        let mut vector = Self { values: Vec::with_capacity(schema.n_features()), missing: Vec::new(), out_of_range: Vec::new() };
        for (feature_idx, (feature, value)) in schema.features.iter().zip(values).enumerate() {
            let value = match (value, feature.kind) {
                (None, _) => {
                    vector.missing.push(feature_idx);
                    f32::NAN
                }
                (Some(FactValue::Number(number)), FeatureKind::Numeric) => {
                    let value = number as f32;
                    if !value.is_finite() {
                        return Err(RiskError::NotFinite { feature: feature.name.clone() });
                    }
                    if feature.min.is_some_and(|min| value < min) || feature.max.is_some_and(|max| value > max) {
                        vector.out_of_range.push(feature_idx);
                    }
                    value
                }
                (Some(FactValue::Flag(flag)), FeatureKind::Boolean) => f32::from(u8::from(flag)),
                (Some(FactValue::Text(category)), FeatureKind::Categorical) => {
                    schema.code(feature_idx, category).unwrap_or_else(|| {
                        vector.out_of_range.push(feature_idx);
                        f32::NAN
                    })
                }
                (Some(_), expected) => return Err(RiskError::WrongKind { feature: feature.name.clone(), expected }),
            };
            vector.values.push(value);
        }
        Ok(vector)
    }
}

fn normalized(category: &str) -> String {
    category.trim().to_lowercase()
}
