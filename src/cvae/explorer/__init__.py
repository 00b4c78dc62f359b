"""Web page that runs a trained model in the browser: draw an image and change its style.

The folder that :func:`write_folder` writes is static: any web server or static host can publish it.
"""

from cvae.explorer.folder import check_supported as check_supported
from cvae.explorer.folder import write_folder as write_folder
from cvae.explorer.server import bind as bind
from cvae.explorer.server import serve as serve
