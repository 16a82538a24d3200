(() => {
  // The stops of palette.rs for a light page; the dark ones start at a dark page's ground.
  const RAMPS = {
    light: { to: ["#ffffff", "#d6e6f4", "#abd0e6", "#82bbdb", "#5ba3cf", "#3787c0", "#1b69af", "#084d96", "#08306b"],
             from: ["#ffffff", "#feebd8", "#fdd2a6", "#fdb171", "#f98f3e", "#e96c16", "#cb4d04", "#9c3603", "#702a04"] },
    dark: { to: ["#17191d", "#14304d", "#17497a", "#1f66a6", "#3585c8", "#5aa5de", "#8ac4ee", "#b9def8", "#e6f4ff"],
            from: ["#17191d", "#42260f", "#6d3a0f", "#9a500f", "#c56a18", "#e58a36", "#f5ac66", "#fcd0a2", "#fff0de"] },
  };
  const parse = hex => [1, 3, 5].map(at => parseInt(hex.slice(at, at + 2), 16));
  const ramp = stops => {
    const colors = stops.map(parse);
    return value => {
      const along = Math.min(Math.max(value, 0), 1) * (colors.length - 1);
      const at = Math.min(Math.floor(along), colors.length - 2);
      return colors[at].map((low, i) => Math.round(low + (colors[at + 1][i] - low) * (along - at)));
    };
  };
  const css = rgb => `rgb(${rgb.join(",")})`;
  const ink = rgb => 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 140 ? "#1a1a1a" : "#ffffff";
  const make = (parent, tag, name, text) => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text !== undefined) node.textContent = text;
    parent.appendChild(node);
    return node;
  };

  function start(root) {
    root.dataset.hs = "1";
    const data = JSON.parse(root.querySelector(".hs-data").textContent);
    const { tokens, names, first } = data;
    const keys = tokens.length, queries = keys - first;
    const at = (head, query, key) => data.heads[head][query * keys + key] / 1000;
    let head = 0, token = keys - 1, pinned = false, cell = null, colors = {}, textColor = "";

    const live = make(root, "div");
    const top = make(live, "div", "hs-head");
    make(top, "span", "hs-title", data.title);
    const one = (names[0] || "head").split(" ")[0]; // "head 2.0", or "step 100" in a film
    make(top, "span", "hs-soft", `${names.length} ${one}${names.length > 1 ? "s" : ""}, ${keys} tokens; choose a ${one}, point at a token or a cell`);
    const scale = make(top, "span", "hs-scale");
    make(scale, "span", "", "0");
    const bar = make(scale, "i");
    make(scale, "span", "", "1");
    const thumbs = make(live, "div", "hs-thumbs");
    const columns = Math.ceil(names.length / Math.ceil(names.length / 12));
    thumbs.style.gridTemplateColumns = `repeat(auto-fill,minmax(max(64px,calc((100% - ${2 * columns}px)/${columns})),1fr))`;
    thumbs.style.maxWidth = 106 * columns + "px";
    const body = make(live, "div", "hs-body");
    const large = make(body, "canvas", "hs-large");
    const side = make(body, "div", "hs-text");
    const status = make(side, "div", "hs-status");

    const buttons = names.map((name, index) => {
      const button = make(thumbs, "button");
      button.type = "button";
      const picture = make(button, "canvas");
      make(button, "span", "", name);
      button.addEventListener("click", () => { head = index; show(); });
      return { button, picture };
    });
    const strips = ["to", "from"].map(kind => {
      const name = make(side, "div", "hs-name");
      const strip = make(side, "div", "hs-strip");
      const chips = tokens.map((text, index) => {
        const chip = make(strip, "span", "hs-token");
        const word = make(chip, "b", "", text);
        const value = make(chip, "small");
        chip.addEventListener("mouseenter", () => { if (!pinned) { token = index; cell = null; show(); } });
        chip.addEventListener("click", () => { pinned = !(pinned && token === index); token = index; cell = null; show(); });
        return { chip, word, value };
      });
      return { kind, name, chips };
    });

    // The large picture: labels to the left and below, as wide as the longest needs.
    const size = Math.max(3, Math.min(26, Math.floor(340 / keys)));
    const cut = text => text.length > 12 ? text.slice(0, 11) + "…" : text;
    const letters = Math.max(8, Math.min(12, size - 1));
    const font = bold => `${bold ? "bold " : ""}${letters}px system-ui, Helvetica, Arial, sans-serif`;
    const pen = large.getContext("2d");
    pen.font = font(true);
    const margin = Math.ceil(Math.max(...tokens.map(text => pen.measureText(cut(text)).width))) + 8;
    const left = margin + 16, wide = left + keys * size + 2, high = queries * size + margin + 20;
    const every = Math.ceil((letters + 1) / size);

    function pixels(picture, index) {
      picture.width = keys;
      picture.height = queries;
      const image = new ImageData(keys, queries);
      data.heads[index].forEach((value, place) => image.data.set([...colors.to(value / 1000), 255], 4 * place));
      picture.getContext("2d").putImageData(image, 0, 0);
    }

    function theme() {
      const color = getComputedStyle(root).color;
      if (color === textColor) return;
      textColor = color;
      // A painted pixel gives red, green and blue however the page wrote the colour; light text means a dark page.
      const dot = document.createElement("canvas").getContext("2d");
      dot.fillStyle = color;
      dot.fillRect(0, 0, 1, 1);
      const dark = ink([...dot.getImageData(0, 0, 1, 1).data]) === "#1a1a1a";
      const stops = RAMPS[dark ? "dark" : "light"];
      colors = { to: ramp(stops.to), from: ramp(stops.from) };
      bar.style.background = `linear-gradient(to right,${stops.to.join(",")})`;
      buttons.forEach(({ picture }, index) => pixels(picture, index));
      show();
    }

    function drawLarge() {
      const ratio = window.devicePixelRatio || 1;
      large.width = wide * ratio;
      large.height = high * ratio;
      large.style.width = wide + "px";
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      for (let query = 0; query < queries; query++)
        for (let key = 0; key < keys; key++) {
          pen.fillStyle = css(colors.to(at(head, query, key)));
          pen.fillRect(left + key * size, query * size + 1, size, size);
        }
      pen.strokeStyle = "rgba(128,128,128,.6)";
      pen.strokeRect(left - 0.5, 0.5, keys * size + 1, queries * size + 1);
      pen.fillStyle = textColor;
      pen.textBaseline = "middle";
      pen.textAlign = "right";
      const [query, key] = cell || [token - first, -1];
      const near = (index, chosen) => index === chosen || (index % every === 0 && (chosen < 0 || Math.abs(index - chosen) >= every));
      for (let row = 0; row < queries; row++) {
        if (!near(row, query)) continue;
        pen.font = font(row === query);
        pen.fillText(cut(tokens[row + first]), left - 6, (row + 0.5) * size + 1);
      }
      for (let column = 0; column < keys; column++) {
        if (!near(column, cell ? key : token)) continue;
        pen.save();
        pen.font = font(column === (cell ? key : token));
        pen.translate(left + (column + 0.5) * size, queries * size + 7);
        pen.rotate(-Math.PI / 2);
        pen.fillText(cut(tokens[column]), 0, 0);
        pen.restore();
      }
      pen.globalAlpha = 0.68;
      pen.font = "11px system-ui, Helvetica, Arial, sans-serif";
      pen.textAlign = "center";
      pen.fillText("key", left + keys * size / 2, high - 7);
      pen.translate(7, queries * size / 2);
      pen.rotate(-Math.PI / 2);
      pen.fillText("query", 0, 0);
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      pen.globalAlpha = 1;
      pen.strokeStyle = "#d55e00";
      pen.lineWidth = 1.5;
      if (query >= 0) pen.strokeRect(left, query * size + 1, keys * size, size);
      pen.strokeRect(left + (cell ? key : token) * size, 1, size, queries * size);
    }

    function drawStrips() {
      for (const { kind, name, chips } of strips) {
        const query = token - first, absent = kind === "to" && query < 0;
        name.textContent = absent ? `${tokens[token]} is no query here` : kind === "to" ? `${tokens[token]} attends to` : `attends to ${tokens[token]}`;
        chips.forEach(({ chip, word, value }, index) => {
          const row = kind === "to" ? query : index - first;
          const number = row < 0 ? 0 : kind === "to" ? at(head, row, index) : at(head, row, token);
          const rgb = colors[kind](number);
          word.style.background = css(rgb);
          word.style.color = ink(rgb);
          value.textContent = number >= 0.005 ? number.toFixed(2).replace(/^0/, "") : "";
          chip.title = `${tokens[index]} (position ${index}): ${number.toFixed(3)}`;
          chip.classList.toggle("hs-here", cell && cell[0] + first === token ? kind === "to" && index === cell[1] : index === token);
        });
      }
    }

    function show() {
      buttons.forEach(({ button }, index) => button.setAttribute("aria-pressed", String(index === head)));
      status.textContent = "";
      make(status, "strong", "", names[head]);
      if (cell) make(status, "span", "", `: ${tokens[cell[0] + first]} (${cell[0] + first}) → ${tokens[cell[1]]} (${cell[1]}): ${at(head, ...cell).toFixed(3)}`);
      else if (pinned) make(status, "span", "hs-soft", "  held; click the token again to let go");
      drawLarge();
      drawStrips();
    }

    const under = event => {
      const box = large.getBoundingClientRect(), zoom = wide / box.width;
      const key = Math.floor(((event.clientX - box.left) * zoom - left) / size);
      const query = Math.floor(((event.clientY - box.top) * zoom - 1) / size);
      return key >= 0 && key < keys && query >= 0 && query < queries ? [query, key] : null;
    };
    large.addEventListener("mousemove", event => {
      const found = under(event);
      if (String(found) === String(cell)) return;
      cell = found;
      if (found && !pinned) token = found[0] + first;
      show();
    });
    large.addEventListener("mouseleave", () => { cell = null; show(); });

    root.querySelector(".hs-still").style.display = "none";
    theme();
    root.addEventListener("mouseenter", theme);
    new MutationObserver(theme).observe(document.body, { attributes: true });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", theme);
  }

  document.querySelectorAll(".hs-attention:not([data-hs])").forEach(start);
})();
