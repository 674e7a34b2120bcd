//! The part of a text that is the answer, where the model wrote its thoughts before it.

/// What of a text is its answer: what stands in the last `<answer>`, or behind the last `</think>`, else all of it.
///
/// # Errors
/// The reason for which there is no answer: the text ends among the thoughts.
pub fn answer(text: &str) -> Result<&str, &'static str> {
    if let Some((_, after)) = text.rsplit_once("<answer>") {
        return Ok(after.split_once("</answer>").map_or(after, |(inside, _)| inside).trim());
    }
    if let Some((_, after)) = text.rsplit_once("</think>") {
        return Ok(after.trim());
    }
    if text.contains("<think>") {
        return Err("the text ends inside <think>, before the answer: allow more tokens");
    }
    Ok(text.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thoughts_are_no_part_of_the_answer() {
        for (text, expected) in [
            ("<think>0.9-1.0?</think><answer> 0.1-0.2 </answer>", Ok("0.1-0.2")),
            ("<think>a</think> <answer>0.1-0.2", Ok("0.1-0.2")),
            ("<think>a <answer>1</answer></think>\n<answer>2</answer> done", Ok("2")),
            ("thoughts</think>\n0.1-0.2", Ok("0.1-0.2")),
            (" plain ", Ok("plain")),
        ] {
            assert_eq!(answer(text), expected, "{text:?}");
        }
        assert!(answer("<think>0.1-0.2 perhaps, or").is_err());
    }
}
