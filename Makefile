.PHONY: help run build test bench soak lint generate fuzz vulncheck

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: build ## try it: webspaces on this machine, http://alice.localhost:8081
	bin/webspaced demo

build: ## build bin/webspaced
	go build -o bin/webspaced ./cmd/webspaced

test: ## run all checks and tests; as root on Debian, first install what they need
	test/run

bench: ## measure boots, herds and synchronisation; as root on Debian with a real LXD
	if [ "$$(id -u)" = 0 ] && grep -qs '^ID=debian$$' /etc/os-release; then test/install; fi
	go test -run='^$$' -bench=. -benchtime=$(or $(BENCHTIME),1s) -timeout=30m ./...

soak: ## do everything at once for SOAK (30m) on a real LXD, and see that nothing is left; as root on Debian
	if [ "$$(id -u)" = 0 ] && grep -qs '^ID=debian$$' /etc/os-release; then test/install; fi
	SOAK=$(or $(SOAK),30m) go test -race -count=1 -v -timeout=5h -run='^TestSoak$$' ./test/integration

lint: ## check formatting, vet, staticcheck, go.mod and generated code
	test/lint

generate: ## make generated code again
	go generate ./...

fuzz: ## run every fuzz target for FUZZTIME (30s, or a number of executions: 100000x)
	FUZZTIME=$(or $(FUZZTIME),30s) test/fuzz

vulncheck: ## look for known vulnerabilities; needs vuln.go.dev
	test/vulncheck
