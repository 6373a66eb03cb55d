// The page's own script is a file because its policy allows none within the page.
SwaggerUIBundle({
  url: "/static/api.yaml",
  dom_id: "#ui",
  deepLinking: true,
  docExpansion: "list",
  validatorUrl: null, // asks a host elsewhere
  persistAuthorization: false, // a token on disk outlives the tab
});
