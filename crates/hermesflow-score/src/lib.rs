//! Text judges: caption similarity, question writing and filtering, choice matching.
