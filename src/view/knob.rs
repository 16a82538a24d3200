//! What changes when one thing is turned? Pictures computed beforehand, with a slider that goes through them.

use super::display::{Html, Svg};
use super::text::escape;
use crate::error::{Error, Result};

/// A slider over pictures, one for each setting of what is turned. It needs no kernel: all pictures are in the page.
/// Without scripts, the first one is a still picture.
///
/// ```
/// # fn main() -> headscope::Result<()> {
/// use headscope::view::{Bars, knob};
/// let picture = |width: u32| Bars::new().bar("division", 0.1 * f64::from(width)).svg();
/// let page = knob("width of a head", &[("2".into(), picture(2)?), ("4".into(), picture(4)?)])?;
/// assert!(page.as_str().contains("type=\"range\""));
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`Error::Argument`] if there is no picture.
pub fn knob(name: &str, steps: &[(String, Svg)]) -> Result<Html> {
    let Some((first, _)) = steps.first() else {
        return Err(Error::argument("steps", "at least one picture", "none"));
    };
    let last = steps.len() - 1;
    let mut page = format!(
        "<div class=\"headscope-knob\"><label style=\"display:flex;gap:.7em;align-items:center;font-family:sans-serif\">\
         <span>{}</span><input type=\"range\" min=\"0\" max=\"{last}\" value=\"0\" step=\"1\" style=\"width:16em\">\
         <output style=\"font-weight:bold\">{}</output></label>\n",
        escape(name),
        escape(first)
    );
    for (number, (label, picture)) in steps.iter().enumerate() {
        let hidden = if number > 0 { " hidden" } else { "" };
        page.push_str(&format!("<div data-label=\"{}\"{hidden}>{}</div>\n", escape(label), picture.as_str()));
    }
    page.push_str(&format!("</div><script>{SCRIPT}</script>"));
    Ok(Html::new(page))
}

/// Shows the picture at the slider's place, in each knob of the page that does not work yet.
const SCRIPT: &str = "document.querySelectorAll('.headscope-knob:not([data-on])').forEach(knob=>{knob.dataset.on='1';\
const slider=knob.querySelector('input'),shown=knob.querySelector('output');\
const steps=[...knob.querySelectorAll('[data-label]')];\
slider.addEventListener('input',()=>{steps.forEach((step,n)=>{step.hidden=n!=slider.value});\
shown.textContent=steps[slider.value].dataset.label})})";

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::view::Bars;

    #[test]
    fn one_picture_is_shown_and_the_others_wait() {
        let picture = Bars::new().bar("a", 1.0).svg().unwrap();
        let steps: Vec<(String, Svg)> = ["<0>", ".5", "1"].map(|label| (label.to_owned(), picture.clone())).to_vec();
        let page = knob("dose & more", &steps).unwrap();
        let source = page.as_str();
        assert_eq!(source.matches("<svg").count(), 3);
        assert_eq!(source.matches(" hidden>").count(), 2);
        assert!(source.contains("max=\"2\"") && source.contains("&lt;0&gt;") && source.contains("dose &amp; more"));
        assert!(knob("nothing", &[]).is_err());
    }
}
