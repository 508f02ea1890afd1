// render TEMPLATE OUTPUT: writes the template with every ${NAME} replaced by that environment variable.
//
// A variable that is not set is an error, and no output is written: a server is not to start with half a configuration.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LONGEST_NAME = 128, LARGEST_TEMPLATE = 1 << 20 };

static char template[LARGEST_TEMPLATE + 1];

// Writes `text` to `out`, variables replaced. Returns false, having said why, when it cannot.
static int render(const char *text, FILE *out) {
    for (const char *opening; (opening = strstr(text, "${")) != NULL;) {
        const char *name = opening + 2;
        const char *closing = strchr(name, '}');
        if (closing == NULL || closing - name >= LONGEST_NAME) {
            fprintf(stderr, "render: \"${%.20s\": no } follows within %d characters\n", name, LONGEST_NAME);
            return 0;
        }
        char key[LONGEST_NAME] = {0};
        memcpy(key, name, (size_t)(closing - name));
        const char *value = getenv(key);
        if (value == NULL) {
            fprintf(stderr, "render: the template asks for %s, which is not set in the environment\n", key);
            return 0;
        }
        fwrite(text, 1, (size_t)(opening - text), out);
        fputs(value, out);
        text = closing + 1;
    }
    fputs(text, out);
    return 1;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: render TEMPLATE OUTPUT\n");
        return 2;
    }
    FILE *in = fopen(argv[1], "r");
    if (in == NULL) {
        perror(argv[1]);
        return 1;
    }
    size_t length = fread(template, 1, LARGEST_TEMPLATE + 1, in);
    fclose(in);
    if (length > LARGEST_TEMPLATE) {
        fprintf(stderr, "render: %s is larger than %d bytes\n", argv[1], LARGEST_TEMPLATE);
        return 1;
    }
    template[length] = '\0';

    // Whole or not at all: it is written beside the output, and then takes its name.
    char beside[FILENAME_MAX];
    snprintf(beside, sizeof beside, "%s.new", argv[2]);
    FILE *out = fopen(beside, "w");
    if (out == NULL) {
        perror(beside);
        return 1;
    }
    int rendered = render(template, out);
    int written = !ferror(out);
    if (fclose(out) != 0 || !written || !rendered) {
        if (rendered) {
            perror(beside);
        }
        remove(beside);
        return 1;
    }
    if (rename(beside, argv[2]) != 0) {
        perror(argv[2]);
        return 1;
    }
    printf("rendered %s\n", argv[2]);
    return 0;
}
