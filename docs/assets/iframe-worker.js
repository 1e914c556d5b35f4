/* Search in pages opened from a folder: browsers start no worker there, so a hidden frame does what it would do.
   Material's offline plugin would load such a script from elsewhere. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      this.frame = document.body.appendChild(frame);
      this.ready = new Promise((loaded, failed) => {
        const inside = frame.contentWindow;
        // a worker's words for what a window calls otherwise
        inside.postMessage = (data) => {
          const event = new MessageEvent("message", { data });
          this.dispatchEvent(event);
          this.onmessage?.(event);
        };
        inside.importScripts = (...urls) =>
          urls.reduce((before, next) => before.then(() => load(inside.document, next)), Promise.resolve());
        load(inside.document, url).then(loaded, failed);
      });
    }
    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }
    terminate() {
      this.frame.remove();
    }
  };
  function load(page, url) {
    return new Promise((loaded, failed) => {
      const script = page.createElement("script");
      script.src = url;
      script.onload = loaded;
      script.onerror = failed;
      page.body.appendChild(script);
    });
  }
}
