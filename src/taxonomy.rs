//! Types, actions and owners of a bundle. It is data: a distributor replaces it with their own codes.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

/// The abstention: what the classifier answers when a text fits no type. Never a trained class.
pub const UNRECOGNIZED: &str = "unrecognized";
/// The action that is always possible.
pub const MANUAL_REVIEW: &str = "manual_review";

/// The parsed taxonomy. Order of types is the class order of every model trained with it.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Taxonomy {
    pub version: String,
    #[serde(rename = "type")]
    pub types: Vec<TypeDefinition>,
    #[serde(rename = "action", default)]
    pub actions: Vec<ActionDefinition>,
    #[serde(rename = "owner", default)]
    pub owners: Vec<OwnerDefinition>,
}

/// One thing an exception can be.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TypeDefinition {
    pub code: String,
    pub name: String,
    pub definition: String,
    #[serde(default)]
    pub not_this: Option<String>,
    /// Code of the owner whose queue the case goes to.
    pub owner: String,
}

/// One thing that can be done about it.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ActionDefinition {
    pub code: String,
    pub name: String,
    /// Whether it can be undone. One that cannot needs an approver.
    pub reversible: bool,
    /// What it moves beyond the order itself. Anything here needs an approver.
    #[serde(default)]
    pub touches: Vec<Touch>,
}

/// What an action moves that automation must not move alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Touch {
    Money,
    Credit,
}

/// A queue of people.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct OwnerDefinition {
    pub code: String,
}

/// Why a taxonomy was refused.
#[derive(Debug, thiserror::Error)]
pub enum TaxonomyError {
    #[error("the taxonomy is not readable")]
    Parse(#[from] toml::de::Error),
    #[error("the taxonomy has no types")]
    Empty,
    #[error("`{code}` is defined twice")]
    Duplicate { code: String },
    #[error("`unrecognized` is the abstention of the service and cannot be a type")]
    ReservedType,
    #[error("type `{code}` names the owner `{owner}`, which is not defined")]
    UnknownOwner { code: String, owner: String },
    #[error("the action `manual_review` is missing: a person must always be able to take over")]
    NoManualReview,
}

impl Taxonomy {
    /// Reads and checks a taxonomy.
    ///
    /// # Errors
    /// The first contradiction found: duplicate or reserved codes, unknown owners, no `manual_review`.
    pub fn from_toml(text: &str) -> Result<Self, TaxonomyError> {
        let taxonomy: Self = toml::from_str(text)?;
        taxonomy.check()?;
        Ok(taxonomy)
    }

    pub fn type_by_code(&self, code: &str) -> Option<&TypeDefinition> {
        self.types.iter().find(|definition| definition.code == code)
    }

    pub fn action_by_code(&self, code: &str) -> Option<&ActionDefinition> {
        self.actions.iter().find(|definition| definition.code == code)
    }

    pub fn has_owner(&self, code: &str) -> bool {
        self.owners.iter().any(|definition| definition.code == code)
    }

    fn check(&self) -> Result<(), TaxonomyError> {
        if self.types.is_empty() {
            return Err(TaxonomyError::Empty);
        }
        unique(self.types.iter().map(|definition| &definition.code))?;
        unique(self.actions.iter().map(|definition| &definition.code))?;
        unique(self.owners.iter().map(|definition| &definition.code))?;
        if self.type_by_code(UNRECOGNIZED).is_some() {
            return Err(TaxonomyError::ReservedType);
        }
        if let Some(orphan) = self.types.iter().find(|definition| !self.has_owner(&definition.owner)) {
            return Err(TaxonomyError::UnknownOwner { code: orphan.code.clone(), owner: orphan.owner.clone() });
        }
        if self.action_by_code(MANUAL_REVIEW).is_none() {
            return Err(TaxonomyError::NoManualReview);
        }
        Ok(())
    }
}

fn unique<'a>(codes: impl Iterator<Item = &'a String>) -> Result<(), TaxonomyError> {
    let mut seen = HashSet::new();
    for code in codes {
        if !seen.insert(code) {
            return Err(TaxonomyError::Duplicate { code: code.clone() });
        }
    }
    Ok(())
}
