##@ Use
.PHONY: new

new: ## make a project of your own (docs/how-to/new-project.md)
	@$(firstword $(wildcard .venv/bin/python) $(PYTHON)) tools/new/new.py "$(NAME)" "$(DIR)" --keep "$(or $(KEEP),core)"
